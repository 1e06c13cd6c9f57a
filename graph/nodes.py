"""What a layer graph is made of: tensors' specs, nodes and cuts, as plain immutable records."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape, dtype and size of one tensor, for the example input's batch size.

    ``shape`` includes the batch dimension; ``bytes`` is the dense size.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True)
class Node:
    """One operation of the layer graph.

    Attributes:
        index: Position in execution order, the placeholder of the input being among the first.
        name: torchvision's dotted qualified name, e.g. ``layer4.2.relu_2``.
        fx_name: Name of the node in the ``torch.fx`` graph.
        op: Class of the leaf module or name of the function, e.g. ``Conv2d``, ``add``.
        module_path: Dotted path of the module whose ``forward`` made the node.
        inputs: Indices of the nodes it reads.
        spec: Output tensor, or None where the output is not one tensor (a tuple, a size).
        param_bytes: Bytes of the parameters and buffers that the node itself reads.
        flops: Floating-point operations as ``torch.utils.flop_counter`` counts them: two per
            multiply-add of convolutions, matrix products and attention; all else counts 0.
        live_bytes: Bytes of all activations alive while the node runs, its output included
            (tensors that share storage counted once; kernels' scratch space not counted).
        from_input: Whether the output depends on the values of the input.
        lossless: Whether the node only renames or reorders its single input (flatten, dropout in
            eval mode, identity, ...), so that its output exposes exactly the same information.
        is_layer: Whether it is a convolution or a linear layer.
        calls: The calls of modules that made it, outermost first: path, and which call from 0.
    """

    index: int
    name: str
    fx_name: str
    op: str
    module_path: str
    inputs: tuple[int, ...]
    spec: TensorSpec | None
    param_bytes: int
    flops: int
    live_bytes: int
    from_input: bool
    lossless: bool
    is_layer: bool
    calls: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Cut:
    """A place where the graph can be parted. The named node is the last one in the enclave.

    Attributes:
        name: Qualified name of the last node of the head.
        index: Position of the cut among the cuts it was listed with, from 0.
        node: Index of the named node in the layer graph.
        boundary: The tensors that cross, in execution order; an attacker sees all of them.
        aliases: Later nodes that expose the same information and were merged into this cut.
        payload_bytes: Bytes that cross for one run at the example input's batch size.
        head_flops, tail_flops: As counted by ``torch.utils.flop_counter``.
        head_param_bytes: Parameters and buffers that the enclave must hold.
        head_peak_activation_bytes: Largest sum of live activations while the head runs.
        head_layers, tail_layers: Convolution and linear layers on each side.
        stage: Whether the cut is a module boundary at the graph's stage depth.
        shared: Parameters that both sides read: a block called on both, or tied weights.
    """

    name: str
    index: int
    node: int
    boundary: tuple[TensorSpec, ...]
    payload_bytes: int
    head_flops: int
    tail_flops: int
    head_param_bytes: int
    head_peak_activation_bytes: int
    head_layers: int
    tail_layers: int
    aliases: tuple[str, ...] = field(default=())
    stage: bool = False
    shared: tuple[str, ...] = ()

    @property
    def remarks(self) -> list[str]:
        """What must be known before this cut is exported."""
        found = []
        if self.shared:
            more = f" and {len(self.shared) - 1} more" if len(self.shared) > 1 else ""
            found.append(
                f"head and tail both read {self.shared[0]}{more}: a bundle holds it sealed in the "
                "head and in the clear in the tail"
            )
        odd = [t for t in self.boundary if t.dtype.startswith("complex")]
        if odd:
            found.append(f"cannot be exported: {odd[0].name} is {odd[0].dtype}")
        return found
