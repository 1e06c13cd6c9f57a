"""Which cuts a layer graph has: enumeration, merging of equals, stages, published points, thinning.

A cut after node *p* puts nodes 0..p into the head. Its boundary is every tensor that depends on the
input's values, is made at or before *p* and read after it. Nodes that do not depend on the input's
values (parameters, position embeddings, sizes) belong to whichever side needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..errors import CutError, UsageError, nearest
from .nodes import Cut, Node

KINDS = ("clean", "all", "stage", "paper")


def last_reader(nodes: Sequence[Node]) -> list[int]:
    """For every node, the index of the last node that reads it (its own index where none does)."""
    last = [n.index for n in nodes]
    for node in nodes:
        for source in node.inputs:
            last[source] = max(last[source], node.index)
    return last


def lossless_root(nodes: Sequence[Node], index: int) -> int:
    """Follow nodes that only rename or reorder their input back to where the values were made."""
    while nodes[index].lossless:
        index = next(i for i in nodes[index].inputs if nodes[i].from_input)
    return index


def every_cut(
    nodes: Sequence[Node],
    answers: Sequence[int],
    portable: Callable[[int, tuple[int, ...]], bool],
) -> list[Cut]:
    """List all cuts in execution order, those that expose the same information merged.

    Args:
        nodes: The graph's nodes; the last one is the output.
        answers: Indices of the nodes whose tensors are returned.
        portable: Called with a cut's node and its boundary; False where a value that is not a
            tensor would have to cross and cannot be recomputed from the boundary's shapes.

    Returns:
        Cuts whose boundary is neither the bare input nor the finished answer. Merged cuts keep
        the first, cheapest name; the others are in ``aliases``.
    """
    last = last_reader(nodes)
    end = len(nodes) - 1
    answer = {lossless_root(nodes, i) for i in answers if nodes[i].from_input}
    done = max(answer, default=end)
    found: dict[frozenset[int], list[Cut]] = {}
    live: set[int] = set()
    flops = params = layers = peak = 0
    for node in nodes[:end]:
        flops, params = flops + node.flops, params + node.param_bytes
        layers, peak = layers + node.is_layer, max(peak, node.live_bytes)
        live = {i for i in live if last[i] > node.index}
        if node.from_input and last[node.index] > node.index:
            live.add(node.index)
        boundary = tuple(sorted(live))
        specs = tuple(spec for i in boundary if (spec := nodes[i].spec) is not None)
        if node.index not in live or len(specs) < len(boundary):
            continue
        roots = frozenset(lossless_root(nodes, i) for i in boundary)
        bare_input = all(not nodes[i].inputs for i in roots)
        finished = roots <= answer and node.index >= done
        if bare_input or finished or not portable(node.index, boundary):
            continue
        cut = Cut(
            name=node.name,
            index=0,
            node=node.index,
            boundary=specs,
            payload_bytes=sum(spec.bytes for spec in specs),
            head_flops=flops,
            tail_flops=0,
            head_param_bytes=params,
            head_peak_activation_bytes=peak,
            head_layers=layers,
            tail_layers=0,
        )
        found.setdefault(roots, []).append(cut)
    total_flops = sum(n.flops for n in nodes)
    total_layers = sum(n.is_layer for n in nodes)
    merged = []
    for same in found.values():
        first = same[0]
        merged.append(
            replace(
                first,
                tail_flops=total_flops - first.head_flops,
                tail_layers=total_layers - first.head_layers,
                aliases=tuple(c.name for c in same[1:]),
            )
        )
    return sorted(merged, key=lambda c: c.node)


def clean_cuts(cuts: Sequence[Cut]) -> list[Cut]:
    """Keep the cuts with exactly one boundary tensor."""
    return [c for c in cuts if len(c.boundary) == 1]


def stage_depth(nodes: Sequence[Node], cuts: Sequence[Cut]) -> int:
    """The smallest module depth that gives at least five stage boundaries."""
    deepest = max((n.module_path.count(".") + 1 for n in nodes), default=1)
    for depth in range(1, deepest + 1):
        if len(stage_cuts(nodes, cuts, depth)) >= 5:
            return depth
    return deepest


def stage_cuts(nodes: Sequence[Node], cuts: Sequence[Cut], depth: int) -> list[Cut]:
    """Keep the cuts at the end of a module whose path has at most `depth` parts."""
    stage_of = [".".join(n.module_path.split(".")[:depth]) for n in nodes]
    ends = {}
    for node, stage in zip(nodes, stage_of, strict=True):
        if stage and node.from_input:
            ends[stage] = node.index
    by_node = {}
    for cut in cuts:
        by_node[cut.node] = cut
    names = {n.name: n.index for n in nodes}
    for cut in cuts:
        for alias in cut.aliases:
            by_node[names[alias]] = cut
    picked = {by_node[i].node: by_node[i] for i in ends.values() if i in by_node}
    return [replace(picked[i], stage=True) for i in sorted(picked)]


def find_named(
    nodes: Sequence[Node], cuts: Sequence[Cut], name: str, also: Mapping[str, str] | None = None
) -> Cut:
    """Return the cut called `name`: a node, an alias, or a module path (its last node).

    Args:
        nodes: The graph's nodes.
        cuts: All its cuts.
        name: As the user gave it.
        also: Other paths of a module, with the path that its nodes are named by.

    Raises:
        CutError: No such node, the graph cannot be parted after it, or a module that is called
            several times.
    """
    by_name = {c.name: c for c in cuts} | {a: c for c in cuts for a in c.aliases}
    if name in by_name:
        return by_name[name]
    known = {n.name for n in nodes}
    path = name if name in known else _first_path(name, also or {})
    calls = sorted({number for n in nodes for at, number in n.calls if at == path})
    if len(calls) > 1 and name not in known:
        ends = [max(n.index for n in nodes if (path, number) in n.calls) for number in calls]
        raise CutError(
            f"`cut` got {name!r}, a module that is called {len(calls)} times"
            f"{'' if path == name else f' (the same as {path!r})'}; name one of its ends: "
            f"{', '.join(nodes[i].name for i in ends)}"
        )
    inside = [n for n in nodes if any(_lies_in(at, path) for at, _ in n.calls)]
    inside += [n for n in nodes if _lies_in(n.name, path) or _lies_in(n.module_path, path)]
    for node in sorted(inside, key=lambda n: -n.index):
        if node.name in by_name:
            return by_name[node.name]
        if node.from_input and node.op != "output":
            break
    if name in known or inside:
        raise CutError(
            f"`cut` names {name!r}, after which the graph cannot be parted "
            f"(it is the input, the answer, or not a tensor); `partopt cuts` lists those that can"
        )
    alone = "a kind of cuts stands alone, and " if name in KINDS else ""
    raise CutError(
        f"`cut` got {name!r}, which is no node of this model{nearest(name, by_name)}; "
        f"{alone}`partopt cuts` lists its names"
    )


def _lies_in(path: str, module: str) -> bool:
    return path == module or path.startswith(module + ".")


def _first_path(name: str, also: Mapping[str, str]) -> str:
    """`name` with the longest path in front that has another one, which nodes are named by."""
    for path in sorted(also, key=len, reverse=True):
        if _lies_in(name, path):
            return also[path] + name[len(path) :]
    return name


def published_cuts(model_class: str, nodes: Sequence[Node], cuts: Sequence[Cut]) -> list[Cut]:
    """The cut points of Rajasekar et al. (arXiv:2404.07437, Tables I and II), by architecture.

    VGG: after each convolution and its activation. ResNet: after the stem and each of the four
    stages (1/10/22/40/49 convolutions in ResNet-50, projections not counted). EfficientNet: after
    the stem, six of the seven MBConv stages (1/3/5/8/11/15 blocks in B0) and the last convolution.

    Raises:
        UsageError: The paper has no cut points for this architecture.
    """
    if model_class == "VGG":
        names = _after_each_convolution(nodes)
    elif model_class == "ResNet":
        names = ["relu", "layer1", "layer2", "layer3", "layer4"]
    elif model_class == "EfficientNet":
        names = [f"features.{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8)]
    else:
        raise UsageError(
            f"`cuts` got 'paper', but the paper has no cut points for {model_class}; "
            "use 'clean', 'all', 'stage' or names"
        )
    return [find_named(nodes, cuts, name) for name in names]


def _after_each_convolution(nodes: Sequence[Node]) -> list[str]:
    names = []
    for node in nodes:
        if node.op == "Conv2d":
            reader = next((n for n in nodes if node.index in n.inputs), node)
            while reader.op in ("BatchNorm2d", "ReLU"):
                node = reader
                reader = next((n for n in nodes if node.index in n.inputs), node)
                if reader is node:
                    break
            names.append(node.name)
    return names


def thin(cuts: Sequence[Cut], most: int, keep: Sequence[Cut]) -> list[Cut]:
    """Choose at most `most` cuts, `keep` first, then those farthest from the chosen in cost.

    Cost is the share of FLOPs in the head plus the share of layers, so that runs of cuts without
    FLOPs still spread. Deterministic: ties go to the earlier cut.
    """
    if len(cuts) <= most:
        return list(cuts)

    def cost(cut: Cut) -> float:
        flops = cut.head_flops / max(1, cut.head_flops + cut.tail_flops)
        return flops + cut.head_layers / max(1, cut.head_layers + cut.tail_layers)

    wanted = {c.node for c in keep}
    chosen: list[Cut] = []
    pools = [[c for c in cuts if c.node in wanted], [c for c in cuts if c.node not in wanted]]
    for pool in pools:
        pool = list(pool)
        while pool and len(chosen) < most:
            if not chosen:
                best = pool[0]
            else:
                # One tensor more or less is no new point: later of equal cost exposes less.
                best = max(
                    pool,
                    key=lambda c: (min(abs(cost(c) - cost(o)) for o in chosen), -c.payload_bytes),
                )
            pool.remove(best)
            chosen.append(best)
    return sorted(chosen, key=lambda c: c.node)
