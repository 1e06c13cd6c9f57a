"""The commands that deploy a cut: export, sign, run, serve, unlock, bench, doctor. No logic."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..arguments.choices import AcceleratorName, EnclaveName, SealName, ServiceName, TransportName
from .console import AsJson, Debug, Shown, out, show, tell, written
from .options import TrustStoredModel

if TYPE_CHECKING:
    from ..enclave_runner.client import Client
    from ..enclave_runner.orchestrator import ServeOptions, Service

app = typer.Typer()

Bundle = Annotated[Path, typer.Argument(help="Folder that partopt export wrote")]
Key = Annotated[
    Path | None, typer.Option(help="The weights' key; default: BUNDLE.key beside the bundle")
]
Enclave = Annotated[
    EnclaveName, typer.Option(help="Where the head runs; auto is the strongest there is")
]
Accelerator = Annotated[AcceleratorName, typer.Option(help="Where the tail runs")]
Transport = Annotated[TransportName, typer.Option(help="How boundary tensors are handed off")]
Threads = Annotated[int, typer.Option(help="Compute threads of each worker")]
Batch = Annotated[int, typer.Option(help="Most images a run")]
InFlight = Annotated[int, typer.Option("--in-flight", help="Runs between head and tail, at most")]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure-no-attestation", help="Talk to a head worker that cannot prove what it is"
    ),
]
SignBundle = Annotated[
    Path | None,
    typer.Option(
        help="Ed25519 key (PEM) that signs the whole bundle, for who runs it with --trust"
    ),
]
Trust = Annotated[
    Path | None,
    typer.Option(help="Public Ed25519 key (PEM): refuse a bundle that is not signed with it"),
]
Connect = Annotated[
    str | None, typer.Option(help="HOST:PORT of a partopt serve, instead of starting workers")
]


@app.command()
def export(
    split: Annotated[Path, typer.Argument(help="Split config that find wrote")],
    out_folder: Annotated[Path, typer.Option("--out", help="New folder for the bundle")],
    weights: Annotated[
        str | None, typer.Option(help="The file that find was given, if it was given one")
    ] = None,
    key: Annotated[
        Path | None, typer.Option(help="File for the new key; default: OUT.key beside the bundle")
    ] = None,
    seal: Annotated[
        SealName, typer.Option(help="gramine: its encrypted mount (AES-128-GCM)")
    ] = "aes-256-gcm",
    optimise: Annotated[
        str,
        typer.Option(help="none (bit-identical), auto, or fold-bn,channels-last"),
    ] = "none",
    batch: Annotated[int, typer.Option(help="Largest batch that the bundle takes")] = 8,
    threads: Annotated[int, typer.Option(help="Threads that the enclave is sized for")] = 1,
    labels: Annotated[
        str | None, typer.Option(help="imagenet, or a text file with a label a line")
    ] = None,
    sign: Annotated[
        Path | None, typer.Option(help="RSA key for gramine-sgx-sign: sign the enclave")
    ] = None,
    sign_bundle: SignBundle = None,
    even_if_slower: Annotated[
        bool,
        typer.Option("--even-if-slower", help="Go on where the split config says: do not split"),
    ] = False,
    accept_screening: Annotated[
        bool,
        typer.Option(
            "--accept-screening",
            help="Go on with a cut that was only screened (budget quick): nothing certifies it",
        ),
    ] = False,
    trust_model: TrustStoredModel = False,
    debug: Debug = False,
) -> None:
    """Write a bundle that runs: head, tail, manifest, hashes.

    Beside them systemd units and a README. A cut that is not certified is refused, with code 2.
    """
    from ..arguments.numbers import threads as hold_threads
    from ..arguments.numbers import whole
    from ..arguments.outputs import folder, writable
    from ..enclave_runner.bundles.export import Build, Keys, Source
    from ..enclave_runner.bundles.export import export as write

    whole("batch", batch, 1)
    hold_threads(threads)
    source = Source(
        split=split,
        weights=weights,
        trust_model=trust_model,
        even_if_slower=even_if_slower,
        accept_screening=accept_screening,
    )
    build = Build(optimise=optimise, batch=batch, threads=threads, labels=labels)
    keys = Keys(file=key, seal_with=seal, sign=sign, sign_bundle=sign_bundle)
    folder(out_folder, "out")
    if key is not None:
        writable(key, "key")
    with Shown() as shown:
        done = write(
            source,
            out_folder,
            build=build,
            keys=keys,
            stage=shown.stage,
        )
    bundle, chosen = done.bundle, done.bundle.optimisation
    tell(
        f"bundle: {done.folder}, {bundle.model} cut after {bundle.cut}; "
        f"{bundle.payload_bytes} bytes cross for an image"
    )
    if chosen.switches:
        tell(
            f"head optimised by {', '.join(chosen.switches)}: {chosen.speedup:.2f}x, answers "
            f"within {chosen.difference:.1e} (tolerance {chosen.tolerance:.0e})"
        )
    elif done.off:
        tell(f"answers within {done.off:.1e} of the model's (share of what they vary by)")
    else:
        tell("answers are bit-identical to the model's")
    if bundle.mrenclave is not None:
        tell(f"MRENCLAVE: {bundle.mrenclave}")
    tell(f"key: {done.key} (keep it off the untrusted host)")
    for warning in done.warnings:
        tell(f"! {warning}", "yellow")


@app.command()
def sign(
    bundle: Bundle,
    key: Annotated[Path, typer.Option(help="RSA key for gramine-sgx-sign")],
    sign_bundle: SignBundle = None,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Sign an exported bundle's enclave, on the machine image that will run it.

    The manifest is rendered anew from what the bundle says that its head needs.
    """
    from ..enclave_runner.bundles.resigning import sign_later

    signed = sign_later(bundle, key, sign_bundle, trust)
    tell(f"MRENCLAVE: {signed.mrenclave}")


@app.command()
def run(
    bundle: Bundle,
    inputs: Annotated[list[Path], typer.Option("--input", help="Image; may be given often")],
    key: Key = None,
    enclave: Enclave = "auto",
    accelerator: Accelerator = "auto",
    transport: Transport = "shm",
    threads: Threads = 1,
    batch: Batch = 1,
    in_flight: InFlight = 2,
    insecure: Insecure = False,
    connect: Connect = None,
    trust: Trust = None,
    top: Annotated[int, typer.Option(help="Classes to show")] = 5,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Classify images with a bundle, its head in the enclave."""
    from ..enclave_runner.bundles.bundle import labels_of, read_bundle
    from ..enclave_runner.client import top as best
    from ..reporting.answers import as_dict, table

    _trusted(bundle, trust)
    images = [(p, _image(p)) for p in inputs]
    found = read_bundle(bundle)
    labels = labels_of(bundle, found)
    rows: list[dict[str, Any]] = []
    if connect is not None:
        with _client(bundle, connect, insecure) as client:
            backend = client.hello.backend
            _classify(client, images, lambda a: best(a, labels, top), rows)
    else:
        options = _options(
            enclave=enclave,
            accelerator=accelerator,
            transport=transport,
            threads=threads,
            batch=batch,
            in_flight=in_flight,
        )
        with _service(bundle, options, _key(bundle, key), insecure) as service:
            backend = service.backend
            with service.client() as client:
                _classify(client, images, lambda a: best(a, labels, top), rows)
    if as_json:
        written(json.dumps(as_dict(backend, rows), indent=2) + "\n")
    else:
        show(table(backend, rows))


def _classify(client: Client, images: list[tuple[Path, bytes]], best: Any, rows: list[Any]) -> None:
    under_way = [(path, client.submit(image)) for path, image in images]
    for path, number in under_way:
        answer = client.collect(number)
        rows.append({"input": str(path), "classes": best(answer), "answer": answer})


@app.command()
def serve(
    bundle: Bundle,
    key: Annotated[
        Path | None,
        typer.Option(help="The weights' key; without it they wait for partopt unlock"),
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT for clients")] = "127.0.0.1:7600",
    enclave: Enclave = "auto",
    accelerator: Accelerator = "auto",
    transport: Transport = "shm",
    threads: Threads = 1,
    batch: Batch = 1,
    in_flight: InFlight = 2,
    queue: Annotated[int, typer.Option(help="Requests that may wait; more are answered busy")] = 16,
    insecure: Insecure = False,
    only: Annotated[
        ServiceName | None, typer.Option(help="One of two services that share the work")
    ] = None,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Serve a bundle until interrupted or terminated.

    Workers that die are started again.
    """
    _trusted(bundle, trust)
    options = _options(
        enclave=enclave,
        accelerator=accelerator,
        transport=transport,
        threads=threads,
        batch=batch,
        in_flight=in_flight,
        queue=queue,
        address=_address("listen", listen),
    )
    with _until_terminated():
        if only == "tail":
            from ..enclave_runner.tail_service import serve_tail

            serve_tail(bundle, options.device, tell)
        else:
            _serve(bundle, options, key, insecure, with_tail=only is None)


def _serve(
    bundle: Path, options: ServeOptions, key: Path | None, insecure: bool, with_tail: bool
) -> None:
    from ..enclave_runner.program.sealing import read_key

    secret = read_key(key) if key is not None else None
    with _service(bundle, options, secret, insecure, with_tail=with_tail) as service:
        address = ":".join(map(str, service.address))
        tell(f"serving {bundle} at {address}; Ctrl-C ends")
        if secret is None:
            tell(f"weights are sealed: partopt unlock {bundle} --connect {address} --key KEYFILE")
        seen = 0
        while True:
            time.sleep(0.5)
            events = list(service.events)
            for event in events[seen:]:
                if event.get("event") in ("restart", "refused", "unlocked", "error"):
                    tell(json.dumps(event))
            seen = len(events)
            service.check()


class _Terminated(BaseException):
    """SIGTERM came. No `Exception`, so that nothing on the way takes it for a failure."""


@contextlib.contextmanager
def _until_terminated() -> Iterator[None]:
    """Let SIGTERM, with which service managers stop a service, clean up as Ctrl-C does."""

    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the clean-up off
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except _Terminated:
        tell("terminated")
    finally:
        signal.signal(signal.SIGTERM, before)


@app.command()
def unlock(
    bundle: Bundle,
    connect: Annotated[str, typer.Option(help="HOST:PORT of a partopt serve")],
    key: Key = None,
    insecure: Insecure = False,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Give a served bundle its weights' key.

    The key crosses in the attested session.
    """
    _trusted(bundle, trust)
    secret = _key(bundle, key)
    with _client(bundle, connect, insecure) as client:
        client.unlock(secret)
    tell(f"unlocked; the head runs as {client.hello.backend}")


@app.command()
def bench(
    bundle: Bundle,
    key: Key = None,
    requests: Annotated[int, typer.Option(help="Timed requests")] = 100,
    published: Annotated[
        int, typer.Option(help="Requests in the published way, an enclave start each")
    ] = 3,
    image: Annotated[
        Path | None, typer.Option("--input", help="Image to send; default: a generated one")
    ] = None,
    enclave: Enclave = "auto",
    accelerator: Accelerator = "auto",
    transport: Transport = "shm",
    threads: Threads = 1,
    in_flight: InFlight = 2,
    insecure: Insecure = False,
    trust: Trust = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write JSON")] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure the deployed split, beside three other ways.

    By stage, and pipelined.
    """
    from ..arguments.numbers import whole
    from ..arguments.outputs import writable
    from ..enclave_runner.bench import bench as measure
    from ..images.dead_leaves import encoded
    from ..reporting.answers import bench_table

    _trusted(bundle, trust)
    whole("requests", requests, 1)
    whole("published", published, 0)
    if out_file is not None:
        writable(out_file, "out", replaced=False)
    data = _image(image) if image is not None else encoded(512, seed=0)
    options = _options(
        enclave=enclave,
        accelerator=accelerator,
        transport=transport,
        threads=threads,
        in_flight=in_flight,
    )
    with Shown() as shown:
        shown.stage("measuring", None)
        found = measure(
            bundle,
            data,
            options,
            _key(bundle, key),
            insecure=insecure,
            requests=requests,
            published=published,
            progress=shown.progress,
        )
    text = json.dumps(found.as_dict(), indent=2) + "\n"
    if out_file is not None:
        out_file.write_text(text)
    if as_json:
        written(text)
    else:
        show(bench_table(found))


def _options(
    *,
    enclave: str,
    accelerator: str,
    transport: str,
    threads: int,
    batch: int = 1,
    in_flight: int,
    queue: int = 16,
    address: tuple[str, int] = ("127.0.0.1", 0),
) -> ServeOptions:
    from ..arguments.numbers import threads as hold_threads
    from ..arguments.numbers import whole
    from ..enclave_runner.orchestrator import ServeOptions
    from ..profilers.backends import pick_accelerator

    hold_threads(threads)
    whole("batch", batch, 1)
    whole("in_flight", in_flight, 1)
    whole("queue", queue, 0)
    return ServeOptions(
        enclave=enclave,
        device=pick_accelerator(accelerator),
        transport=transport,
        threads=threads,
        batch=batch,
        in_flight=in_flight,
        queue=queue,
        host=address[0],
        port=address[1],
    )


def _service(
    bundle: Path, options: ServeOptions, key: bytes | None, insecure: bool, with_tail: bool = True
) -> Service:
    from ..enclave_runner.orchestrator import Service

    service = Service(bundle, options, key=key, insecure=insecure, with_tail=with_tail)
    style = "green" if service.backend == "gramine-sgx" else "bold yellow"
    tell(f"head in {service.backend}: {service.label}", style)
    return service


def _client(bundle: Path, connect: str, insecure: bool) -> Client:
    from ..enclave_runner.attestation import verifier
    from ..enclave_runner.bundles.bundle import read_bundle
    from ..enclave_runner.client import Client
    from ..enclave_runner.program.parts import Part

    part = Part.read(bundle / "head")
    verify = verifier(read_bundle(bundle).mrenclave, insecure=insecure)
    return Client(_address("connect", connect), part.answers, part.limits, verify)


def _trusted(bundle: Path, key: Path | None) -> None:
    """Raise if a key was given and the bundle is not signed with it, before anything is read."""
    if key is not None:
        from ..enclave_runner.bundles.trust import hold_trusted

        hold_trusted(bundle, key)


def _key(bundle: Path, key: Path | None) -> bytes:
    from ..enclave_runner.program.sealing import read_key

    return read_key(key or bundle.resolve().with_name(f"{bundle.resolve().name}.key"))


def _image(path: Path) -> bytes:
    from ..enclave_runner.pictures import sendable
    from ..errors import DataError, PictureError

    try:
        return sendable(path.read_bytes())
    except PictureError as error:
        raise DataError(f"`input` got {str(path)!r}, which cannot be read: it {error}") from None
    except OSError as error:
        raise DataError(f"`input` got {str(path)!r}, which cannot be read: {error.strerror}") from (
            error
        )


def _address(name: str, text: str) -> tuple[str, int]:
    from ..errors import UsageError

    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"`{name}` got {text!r}; use HOST:PORT")
    return host or "127.0.0.1", int(port)


@app.command()
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Say what this machine has, and what each lack costs.

    Looks for torch, a GPU, SGX, Gramine and the caches.
    """
    from dataclasses import asdict

    from rich.text import Text

    from ..enclave_runner.doctor import examine

    findings = examine()
    if as_json:
        written(json.dumps([asdict(f) for f in findings], indent=2) + "\n")
        return
    for finding in findings:
        mark = f"{finding.state:<7}", "green" if finding.state == "ok" else "yellow"
        line = Text.assemble(mark, f" {finding.name:<18} {finding.detail}")
        out.print(line, soft_wrap=True)
