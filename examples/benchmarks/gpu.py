"""Does it run on a GPU, with the same results, and how much faster? python examples/benchmarks/gpu.py

It creates everything it needs, and takes less than eight minutes with a CUDA device. Checks come first, each with its
tolerance; then the seconds of a caching pass and of a training epoch on each device. The exit status is 1 if a check
fails. `--device cpu` rehearses it on the CPU. `--into FILE` writes the results as JSON, with the name of the device.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "born_again"))
from model import wide_resnet  # noqa: E402

from ensemble_distill import Settings, load_settings  # noqa: E402
from ensemble_distill.cache.reader import Cache  # noqa: E402
from ensemble_distill.training.stepping import Stepping  # noqa: E402
from ensemble_distill.workflows.cache_logits import cache_logits  # noqa: E402
from ensemble_distill.workflows.evaluate import evaluate  # noqa: E402
from ensemble_distill.workflows.export import export  # noqa: E402
from ensemble_distill.workflows.quickstart import prepare  # noqa: E402
from ensemble_distill.workflows.train import train  # noqa: E402

OUTPUTS, WEIGHTS, NLL = 1e-3, 5e-2, 2e-2  # tolerances
MEMBERS, ROWS, SIZE = 4, 8192, 32
WAYS = {
    "float32": {},
    "--amp": {"train.amp": True},
    "--amp --channels-last": {"train.amp": True, "train.channels-last": True},
    "--amp --channels-last --torchcompile inductor": {
        "train.amp": True,
        "train.channels-last": True,
        "train.torchcompile": "inductor",
    },
}
Found = dict[str, dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="what is held against the CPU; default cuda")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"of the speed table; default {ROWS:,}")
    parser.add_argument("--into", type=Path, help="a JSON file for what was found")
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device. --device cpu rehearses the checks.")
    name = torch.cuda.get_device_name(given.device) if given.device.startswith("cuda") else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        found = checks(Path(folder) / "digits", given.device)
        seconds = speeds(Path(folder) / "speed", given.device, given.rows)
    if given.into:
        told = {"device": name, "torch": torch.__version__, "rows": given.rows, "checks": found, "seconds": seconds}
        given.into.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return 0 if all(check["held"] for check in found.values()) else 1


# --- checks ----------------------------------------------------------------------------------------------------------


def checks(folder: Path, device: str) -> Found:
    """Compare the quickstart's ensemble on the CPU and on the device, in a folder that is created unless it exists."""
    if not (folder / "edistill.toml").exists():
        prepare(folder)
    on = {"cpu": "cpu", "device": device}
    found: Found = {}
    for where in on:
        cache_logits(settings(folder, on[where], where), overwrite=True)
    tell(found, "cached outputs, largest difference", differing_outputs(folder), OUTPUTS)
    runs = {}
    for where, cache in (("cpu", "cpu"), ("device", "cpu"), ("device", "device"), ("cpu", "device")):
        name = f"{where}-from-{cache}"
        runs[name] = settings(folder, on[where], cache, {"output.name": name, "train.epochs": 2})
        with refusing_waits(on[where]):
            train(runs[name], overwrite=True)
    first, *others = runs
    for name in others:
        tell(found, f"weights after two epochs, {name} beside {first}", differing_weights(folder, first, name), WEIGHTS)
    nlls = [evaluate(runs[name], name).models["student"]["nll"] for name in runs]
    tell(found, "NLL of these on the test rows, largest difference", max(nlls) - min(nlls), NLL)
    tell(found, "weights of a training that was killed, and went on", resumed(folder, device), WEIGHTS)
    export(runs[others[0]], others[0], onnx=True, safetensors=True)  # raises if onnxruntime's outputs differ
    tell(found, "exported, and verified by onnxruntime", 0.0, 0.0)
    return found


def settings(folder: Path, device: str, cache: str, more: dict[str, Any] | None = None) -> Settings:
    given = {"output.cache": f"cache-{cache}", "train.device": device, "views.count": 2, **(more or {})}
    return load_settings(folder / "edistill.toml", given)


def tell(found: Found, what: str, difference: float, may: float) -> None:
    held = bool(difference <= may)
    found[what] = {"difference": float(difference), "may": may, "held": held}
    print(f"{'held  ' if held else 'FAILED'} {what}: {difference:.2g} (at most {may:g})", flush=True)


def differing_outputs(folder: Path) -> float:
    """The largest difference between the class probabilities of the members in both caches."""
    said = []
    for where in ("cpu", "device"):
        records = Cache(folder / f"cache-{where}").open("test")
        said.append(torch.as_tensor(records.read(range(len(records))), dtype=torch.float32).softmax(-1))
    return float((said[0] - said[1]).abs().max())


def differing_weights(folder: Path, a: str, b: str) -> float:
    """The norm of the difference of the weights, divided by their norm."""
    one, other = (load_file(folder / "runs" / name / "student.safetensors") for name in (a, b))
    flat = [torch.cat([weights[key].float().flatten() for key in sorted(one)]) for weights in (one, other)]
    return float((flat[0] - flat[1]).norm() / flat[0].norm())


def resumed(folder: Path, device: str) -> float:
    """Compare an uninterrupted training with one that was killed after its first checkpoint and then resumed."""
    more = {"train.epochs": "6", "train.device": device, "views.count": "2", "output.cache": "cache-device"}
    for name in ("whole", "killed"):
        flags = [part for key, value in {**more, "output.name": name}.items() for part in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "ensemble_distill", "train", *flags]
        if name == "killed":
            process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            while process.poll() is None and not list((folder / "runs" / name).glob("checkpoint*")):
                time.sleep(0.05)
            process.kill()
            process.wait()
        subprocess.run(command, cwd=folder, check=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return differing_weights(folder, "whole", "killed")


@contextmanager
def refusing_waits(device: str) -> Iterator[None]:
    """Make CUDA raise an error if anything within a training step waits for the device."""
    update = Stepping.update
    if not device.startswith("cuda"):
        yield
        return

    def watched(*args: Any, **kwargs: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            update(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    Stepping.update = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        Stepping.update = update  # type: ignore[method-assign]


# --- speed -----------------------------------------------------------------------------------------------------------


def speeds(folder: Path, device: str, rows: int) -> dict[str, float]:
    """Seconds of a caching pass and of a student's epoch on `rows` rows; a CPU runs an eighth of them."""
    write(folder, rows)
    found: dict[str, float] = {}
    for where, count in (("cpu", max(1, rows // 8)), (device, rows)):
        if where == device == "cpu":
            continue
        given = {"limit": count, "output.cache": f"cache-{where.replace(':', '-')}", "train.device": where}
        warm = load_settings(folder / "edistill.toml", {**given, "limit": 256, "output.cache": "warm"})
        cache_logits(warm, overwrite=True)
        scale = rows / count
        of_pass = timed(lambda given=given: cache_logits(load_settings(folder / "edistill.toml", given)))  # type: ignore[misc]
        show(found, f"{where}: caching pass, {MEMBERS} members", scale * of_pass)
        for way, more in WAYS.items():
            if where == "cpu" and more:
                continue
            run = {**given, **more, "output.name": "speed", "train.method": "hydra"}
            took = [timed_training(folder, {**run, "train.epochs": epochs}) for epochs in (1, 3)]
            show(found, f"{where}: an epoch, {way}", scale * (took[1] - took[0]) / 2)
    return found


def write(folder: Path, rows: int) -> None:
    """Write random pictures and untrained members, since their outputs do not matter here."""
    (folder / "teachers").mkdir(parents=True)
    random = np.random.Generator(np.random.PCG64(0))
    x = random.integers(0, 256, (rows, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(folder / "train.npz", x=x, y=random.integers(0, 10, rows))
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        state = {key: value.contiguous() for key, value in wide_resnet(16, 4, classes=10).state_dict().items()}
        save_file(state, folder / "teachers" / f"member-{seed}.safetensors")
    (folder / "model.py").write_text((HERE.parent / "born_again" / "model.py").read_text(encoding="utf-8"))
    (folder / "edistill.toml").write_text(
        'task = "classification"\n[teachers]\npath = "teachers"\nmodel = "model.py:wide_resnet"\n'
        "model-kwargs = { depth = 16, width = 4, classes = 10 }\n"
        "preprocessing = { size = [32, 32], mean = [0.5, 0.5, 0.5], std = [0.25, 0.25, 0.25] }\n"
        '[data]\ntrain = "train.npz"\n[views]\ntransform = "none"\n[cache]\nbatch-size = 512\n'
        '[student]\nmodel = "model.py:wide_resnet"\nkwargs = { depth = 16, width = 4 }\n[train]\nbatch-size = 256\n'
    )


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def timed_training(folder: Path, given: dict[str, Any]) -> float:
    return train(load_settings(folder / "edistill.toml", given), overwrite=True).seconds


def show(found: dict[str, float], what: str, seconds: float) -> None:
    found[what] = round(seconds, 3)
    print(f"{what:<72}{seconds:8.2f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
