"""Peak memory of auditing a model of 7 billion parameters, a random-weight one made for it.

    python benchmarks/large_audit.py --work FOLDER [--layers 4 16 32] [--tokens 2048]

Writes a Mistral-7B-shaped model (hidden 4096, 32 heads, 8 KV heads, MLP 14336; bfloat16 safetensors, a shard a
layer) with each number of layers, audits it by ``headcount audit --metric output`` in a process of its own, and
watches that process's memory: anonymous (what it really needs) and file-backed (weights and sums that lie in files,
which the system drops when it needs room). Prints a Markdown row a model and the slope per layer. Needs 18 GB of disk
for 32 layers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, MistralConfig

from headcount.pretrained.opening.loading import open_model

GIB = 2**30


def write_model(folder: Path, layers: int, tokenizer_of: str) -> int:
    """Write the model one layer at a time and return its number of parameters."""
    folder.mkdir(parents=True)
    tokenizer = open_model(tokenizer_of).tokenizer
    assert tokenizer is not None
    config = MistralConfig(num_hidden_layers=layers, vocab_size=len(tokenizer), sliding_window=None, dtype="bfloat16")
    config.architectures = ["MistralForCausalLM"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: t.shape for name, t in AutoModelForCausalLM.from_config(config).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    shards: dict[str, list[str]] = {}
    for name in shapes:
        part = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(part, []).append(name)
    index = {}
    for number, (_, names) in enumerate(shards.items(), 1):
        tensors = {}
        for name in names:
            made = torch.empty(shapes[name], dtype=torch.bfloat16)
            tensors[name] = made.fill_(1) if made.ndim == 1 else made.normal_(0, 0.02, generator=generator)
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
    numbers = sum(shape.numel() for shape in shapes.values())
    whole = {"metadata": {"total_size": 2 * numbers}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(whole))
    return numbers


def watched(command: list[str]) -> tuple[dict[str, int], float]:
    """Run a command and return its peak anonymous, file-backed and shared memory in bytes, and its duration."""
    peaks = {"RssAnon": 0, "RssFile": 0, "RssShmem": 0}
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            name = line.split(":")[0]
            if name in peaks:
                peaks[name] = max(peaks[name], int(line.split()[1]) * 1024)
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(f"{command} ended with {process.returncode}")
    return peaks, time.monotonic() - start


def main() -> None:
    """Create the models, audit them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--tokenizer", default="demo", help="the model whose tokenizer goes with it")
    options = parser.parse_args()
    text = options.work / "text.txt"
    options.work.mkdir(parents=True, exist_ok=True)
    text.write_text(
        "".join(path.read_text(encoding="utf-8") for path in sorted(Path(torch.__file__).parent.glob("*.py")))
    )
    print("| layers | parameters | weights, GiB | peak anonymous, GiB | peak file-backed, GiB | seconds |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    points = []
    for layers in options.layers:
        model, run = options.work / f"mistral-{layers}", options.work / f"audit-{layers}"
        shutil.rmtree(model, ignore_errors=True)
        shutil.rmtree(run, ignore_errors=True)
        numbers = write_model(model, layers, options.tokenizer)
        command = [sys.executable, "-m", "headcount", "audit", str(model), "--metric", "output", "--text", str(text)]
        peaks, seconds = watched([*command, "--tokens", str(options.tokens), "--out", str(run), "--json"])
        anonymous = peaks["RssAnon"] / GIB
        points.append((layers, anonymous))
        print(
            f"| {layers} | {numbers:,} | {2 * numbers / GIB:.2f} | {anonymous:.2f} "
            f"| {(peaks['RssFile'] + peaks['RssShmem']) / GIB:.2f} | {seconds:.0f} |",
            flush=True,
        )
        shutil.rmtree(model)
    if len(points) > 1:
        (a, low), (b, high) = points[0], points[-1]
        print(f"\n{(high - low) / (b - a) * 1024:.0f} MiB of anonymous memory a layer")


if __name__ == "__main__":
    main()
