"""The commands that deploy a cut: export, sign, run, serve, unlock, bench, doctor. No logic."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..arguments.choices import (
    AcceleratorName,
    EnclaveName,
    EngineName,
    SealName,
    ServiceName,
    TransportName,
)
from .console import AsJson, Debug, Shown, out, show, tell, written
from .options import TrustStoredModel

if TYPE_CHECKING:
    from ..enclave_runner.bundles.bundle import EngineUse
    from ..enclave_runner.client import Client
    from ..enclave_runner.orchestrator import Service
    from ..enclave_runner.serve_options import ServeOptions
    from ..errors import PartoptError

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
ClientKey = Annotated[
    Path | None,
    typer.Option("--client-key", help="Your own key, where the service knows its clients"),
]
AcceptTcb = Annotated[
    list[str] | None,
    typer.Option(
        "--accept-tcb",
        help="State of an SGX platform to accept beside OK, as SW_HARDENING_NEEDED",
    ),
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
        typer.Option(help="none (bit-identical at batch 1), auto, or fold-bn,channels-last"),
    ] = "none",
    engine: Annotated[
        EngineName,
        typer.Option(help="What runs the head; auto: ONNX Runtime (ort) if it is faster"),
    ] = "torch",
    tail_engine: Annotated[
        EngineName, typer.Option("--tail-engine", help="What runs the tail; ort on a CPU alone")
    ] = "torch",
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
    build = Build(
        optimise=optimise,
        engine=engine,
        tail_engine=tail_engine,
        batch=batch,
        threads=threads,
        labels=labels,
    )
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
    if bundle.head_engine.name == "ort":
        pass  # said below
    elif chosen.switches:
        tell(
            f"head optimised by {', '.join(chosen.switches)}: {chosen.speedup:.2f}x, answers "
            f"within {chosen.difference:.1e} (tolerance {chosen.tolerance:.0e})"
        )
    elif done.off:
        tell(f"answers within {done.off:.1e} of the model's (share of what they vary by)")
    else:
        tell(
            "answers are bit-identical to the model's at batch 1; larger batches differ by rounding"
        )
    for role, use, asked in (
        ("head", bundle.head_engine, engine),
        ("tail", bundle.tail_engine, tail_engine),
    ):
        _tell_engine(role, use, asked)
    if bundle.mrenclave is not None:
        tell(f"MRENCLAVE: {bundle.mrenclave}")
    tell(f"key: {done.key} (keep it off the untrusted host)")
    for warning in done.warnings:
        tell(f"! {warning}", "yellow")


def _tell_engine(role: str, use: EngineUse, asked: str) -> None:
    if use.name == "ort":
        off = max(use.differences.values(), default=0.0)
        tell(
            f"{role} by ONNX Runtime ({use.level}): {use.speedup:.2f}x torch; its tensors differ "
            f"by {off:.1e} of their standard deviation at most, on {use.images} images"
        )
    elif asked == "auto":
        said = "; ".join(f"{name}: {why}" for name, why in use.tried.items())
        tell(f"{role} by torch, not ONNX Runtime ({said})")


@app.command()
def sign(
    bundle: Bundle,
    key: Annotated[Path, typer.Option(help="RSA key for gramine-sgx-sign")],
    sign_bundle: SignBundle = None,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Sign an exported bundle's enclave.

    On the machine image that will run it.

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
    client_key: ClientKey = None,
    accept_tcb: AcceptTcb = None,
    trust: Trust = None,
    top: Annotated[int, typer.Option(help="Classes to show")] = 5,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Classify images with a bundle, its head in the enclave."""
    from ..enclave_runner.asking import Asking
    from ..enclave_runner.attestation import claimed
    from ..enclave_runner.bundles.bundle import labels_of, read_bundle
    from ..enclave_runner.client import Answer
    from ..enclave_runner.client import top as best
    from ..enclave_runner.serve_options import ServeOptions
    from ..reporting.answers import as_dict, table

    _trusted(bundle, trust)
    found = read_bundle(bundle)
    labels = labels_of(bundle, found)
    if not any(path.is_file() for path in inputs):
        _image(inputs[0])  # says so, before anything starts
    rows: list[dict[str, Any]] = []
    failed: list[tuple[Path, PartoptError]] = []

    def classify(asking: Asking, window: int) -> None:
        for path, answer in asking.all(inputs, _image, window):
            if isinstance(answer, Answer):
                rows.append({"input": str(path), "classes": best(answer, labels, top)})
                rows[-1]["answer"] = answer
            else:
                failed.append((path, answer))

    with _until_terminated(_TERMINATED):
        if connect is not None:
            there = partial(_client, bundle, connect, insecure, client_key, accept_tcb)
            with Asking(there) as asking:
                backend = claimed(asking.client.hello.backend, proven=not insecure)
                classify(asking, ServeOptions.queue)
        else:
            options = _options(
                enclave=enclave,
                accelerator=accelerator,
                transport=transport,
                threads=threads,
                batch=batch,
                in_flight=in_flight,
                accept_tcb=accept_tcb,
            )
            with _service(bundle, options, _key(bundle, key), insecure) as service:
                backend = claimed(service.backend, proven=not insecure)
                with Asking(service.client) as asking:
                    classify(asking, options.queue)
    if as_json:
        written(json.dumps(as_dict(backend, rows, failed), indent=2) + "\n")
    else:
        show(table(backend, rows))
    if failed and len(inputs) == 1:
        raise failed[0][1]
    if failed:
        tell(f"{len(failed)} of {len(inputs)} images got no answer:")
        for path, error in failed:
            tell(f"! {path}: {error}", "yellow")
        raise typer.Exit(1)


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
    clients: Annotated[
        Path | None,
        typer.Option(help="File of the public keys of those who may connect, one a line"),
    ] = None,
    accept_tcb: AcceptTcb = None,
    only: Annotated[
        ServiceName | None, typer.Option(help="One of two services that share the work")
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds until a silent worker is taken for hung")
    ] = 60.0,
    start_timeout: Annotated[
        float, typer.Option("--start-timeout", help="Seconds that a worker's start may take")
    ] = 300.0,
    logs: Annotated[
        Path | None, typer.Option(help="Folder for head.log and tail.log: what the workers print")
    ] = None,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Serve a bundle until interrupted or terminated.

    Workers that die or hang are started again.
    """
    from dataclasses import replace

    from ..arguments.addresses import numeric
    from ..arguments.numbers import whole
    from ..enclave_runner.client_keys import read_clients

    _trusted(bundle, trust)
    whole("queue", queue, 0)
    host, port = numeric("listen", listen)
    options = replace(
        _options(
            enclave=enclave,
            accelerator=accelerator,
            transport=transport,
            threads=threads,
            batch=batch,
            in_flight=in_flight,
            accept_tcb=accept_tcb,
        ),
        queue=queue,
        host=host,
        port=port,
        timeout=timeout,
        start_timeout=start_timeout,
        logs=logs,
        clients=read_clients(clients) if clients is not None else (),
    )
    with _until_terminated(0):
        if only == "tail":
            from ..enclave_runner.tail_service import serve_tail

            serve_tail(bundle, options.device, tell, options.how("tail"), options.timeout)
        else:
            _serve(bundle, options, key, insecure, with_tail=only is None)


def _serve(
    bundle: Path, options: ServeOptions, key: Path | None, insecure: bool, with_tail: bool
) -> None:
    from ..arguments.addresses import shown
    from ..enclave_runner.program.sealing import read_key

    secret = read_key(key) if key is not None else None
    with _service(bundle, options, secret, insecure, with_tail=with_tail) as service:
        address = shown(*service.address)
        tell(f"serving {bundle} at {address}; Ctrl-C ends")
        _tell_more(options)
        if secret is None:
            tell(f"weights are sealed: partopt unlock {bundle} --connect {address} --key KEYFILE")
        while True:
            for line in service.events.fresh():
                tell(line)
            service.check()
            time.sleep(0.5)


def _tell_more(options: ServeOptions) -> None:
    if options.logs is not None:
        tell(f"workers' output: {options.logs}/head.log and tail.log, at most 32 MiB each")
    else:
        tell("workers' output: its last line is shown when one ends; --logs FOLDER keeps it")


class _Terminated(BaseException):
    """SIGTERM came. No `Exception`, so that nothing on the way takes it for a failure."""


_TERMINATED = 128 + signal.SIGTERM


@contextlib.contextmanager
def _until_terminated(code: int) -> Iterator[None]:
    """Let SIGTERM, with which service managers stop a service, clean up as Ctrl-C does.

    So does SIGHUP, which comes when a terminal is closed, unless it is ignored (nohup). The exit
    code is then `code`.
    """
    watched = [signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        watched.append(signal.SIGHUP)

    def end(*_: object) -> None:
        for number in watched:  # a second one must not cut the clean-up off
            signal.signal(number, signal.SIG_IGN)
        raise _Terminated

    before = {number: signal.signal(number, end) for number in watched}
    try:
        yield
    except _Terminated:
        tell("terminated")
        raise typer.Exit(code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command()
def unlock(
    bundle: Bundle,
    connect: Annotated[str, typer.Option(help="HOST:PORT of a partopt serve")],
    key: Key = None,
    insecure: Insecure = False,
    client_key: ClientKey = None,
    accept_tcb: AcceptTcb = None,
    trust: Trust = None,
    debug: Debug = False,
) -> None:
    """Give a served bundle its weights' key.

    The key crosses in the attested session.
    """
    from ..enclave_runner.attestation import claimed

    _trusted(bundle, trust)
    secret = _key(bundle, key)
    with _client(bundle, connect, insecure, client_key, accept_tcb) as client:
        client.unlock(secret)
    tell(f"unlocked; the head runs as {claimed(client.hello.backend, proven=not insecure)}")


@app.command()
def client_key(
    path: Annotated[Path, typer.Argument(help="New file for your secret key")],
    debug: Debug = False,
) -> None:
    """Make a key by which a service knows you.

    Prints the public key, for the service's --clients file.
    """
    from ..enclave_runner.client_keys import make

    written(make(path) + "\n")


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
    accept_tcb: AcceptTcb = None,
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
        accept_tcb=accept_tcb,
    )
    with _until_terminated(_TERMINATED), Shown() as shown:
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
    accept_tcb: list[str] | None = None,
) -> ServeOptions:
    from ..arguments.numbers import threads as hold_threads
    from ..arguments.numbers import whole
    from ..enclave_runner.serve_options import ServeOptions
    from ..profilers.backends import pick_accelerator

    hold_threads(threads)
    whole("batch", batch, 1)
    whole("in_flight", in_flight, 1)
    return ServeOptions(
        enclave=enclave,
        device=pick_accelerator(accelerator),
        transport=transport,
        threads=threads,
        batch=batch,
        in_flight=in_flight,
        accept_tcb=tuple(accept_tcb or ()),
    )


@contextlib.contextmanager
def _service(
    bundle: Path, options: ServeOptions, key: bytes | None, insecure: bool, with_tail: bool = True
) -> Iterator[Service]:
    """A running service; says at its end what became of it."""
    from ..enclave_runner.orchestrator import Service

    service = Service(bundle, options, key=key, insecure=insecure, with_tail=with_tail)
    style = "green" if service.backend == "gramine-sgx" else "bold yellow"
    tell(f"head in {service.backend}: {service.label}", style)
    if options.batch > 1:
        tell(
            f"batches of up to {options.batch}: an answer differs by rounding (about 1e-7 of it) "
            "from the one that an image alone gets"
        )
    try:
        with service:
            yield service
    except (_Terminated, KeyboardInterrupt):
        for line in service.events.fresh():
            tell(line)
        tell(f"{'; '.join(service.ended) or 'nothing was running'}")
        raise


def _client(
    bundle: Path,
    connect: str,
    insecure: bool,
    client_key: Path | None,
    accept_tcb: list[str] | None,
) -> Client:
    from ..arguments.addresses import address
    from ..enclave_runner.attestation import verifier
    from ..enclave_runner.bundles.bundle import read_bundle
    from ..enclave_runner.client import Client
    from ..enclave_runner.client_keys import read_secret
    from ..enclave_runner.program.parts import Part

    secret = read_secret(client_key) if client_key is not None else None
    part = Part.read(bundle / "head")
    verify = verifier(
        read_bundle(bundle).mrenclave, insecure=insecure, accept=tuple(accept_tcb or ())
    )
    at = address("connect", connect)
    return Client(at, part.answers, part.limits, verify, secret=secret)


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
