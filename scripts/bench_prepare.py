"""Time prepare_owt.py against nanoGPT's published recipe and bare tiktoken on the same parquet files and cores.

    python scripts/bench_prepare.py 'some/*.parquet'

Each contender runs in processes of its own with empty caches. Memory is the peak of the proportional set size (shared
pages divided among their users) summed over the contender's processes.
"""

import glob
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORES = len(os.sched_getaffinity(0))


def run_nanogpt(paths: list[str], out: str) -> None:
    """Follow data/openwebtext/prepare.py: map over all cores, then 1024 slices of each split into a memory map."""
    import datasets
    import numpy as np

    from corpus.tokenizer import make_tokenizer

    encoding = make_tokenizer("gpt2")

    def process(example):
        ids = encoding.encode_ordinary(example["text"])
        ids.append(encoding.eot_token)
        return {"ids": ids, "len": len(ids)}

    split = datasets.load_dataset("parquet", data_files=paths, split="train").train_test_split(
        test_size=0.0005, seed=2357, shuffle=True
    )
    split["val"] = split.pop("test")
    tokenized = split.map(process, remove_columns=split["train"].column_names, desc="tokenizing", num_proc=CORES)
    for name, dataset in tokenized.items():
        length = int(np.sum(dataset["len"], dtype=np.uint64))
        array = np.memmap(os.path.join(out, f"{name}.bin"), dtype=np.uint16, mode="w+", shape=(length,))
        slices, position = min(1024, len(dataset)), 0  # the recipe's 1024 would leave empty slices in a small split
        for index in range(slices):
            batch = dataset.shard(num_shards=slices, index=index, contiguous=True).with_format("numpy")
            ids = np.concatenate(batch["ids"])
            array[position : position + len(ids)] = ids
            position += len(ids)
        array.flush()


def run_tiktoken(paths: list[str], out: str) -> None:
    """Only encode, on one thread per core, and throw the tokens away: no recipe that builds lists can be faster."""
    import pyarrow.parquet
    import tiktoken

    from corpus.tokenizer import make_tokenizer

    encoding = make_tokenizer("gpt2")
    assert isinstance(encoding, tiktoken.Encoding)
    texts = [text for path in paths for text in pyarrow.parquet.read_table(path, columns=["text"]).column(0).to_pylist()]
    started = time.perf_counter()
    for start in range(0, len(texts), 4096):
        encoding.encode_ordinary_batch(texts[start : start + 4096], num_threads=CORES)
    print(f"seconds={time.perf_counter() - started}")


CONTENDERS = {"nanogpt": run_nanogpt, "tiktoken": run_tiktoken}


def measure(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return (seconds, peak MiB over the process tree) of a command; seconds=X in its output replaces the wall clock."""
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = [0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], sum(proportional_kib(pid) for pid in family(process.pid)))
            time.sleep(0.2)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.perf_counter() - started
    watcher.join()
    if process.returncode:
        raise SystemExit(f"failed with code {process.returncode}: {' '.join(command)}")
    own = re.search(r"^seconds=(.+)$", output, re.M)
    return float(own[1]) if own else seconds, peak[0] / 1024


def family(pid: int) -> list[int]:
    """Return pid and all its descendants."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        children = [int(child) for thread in threads for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    except OSError:
        return []
    return [pid, *(member for child in children for member in family(child))]


def proportional_kib(pid: int) -> int:
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) if found else 0


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((__doc__ or "python -OO keeps no help; start Python without it").strip())
        return
    if len(sys.argv) != 2 or not glob.glob(sys.argv[1]):
        raise ConfigError("no parquet files are given; usage: python scripts/bench_prepare.py 'some/*.parquet'")
    pattern = str(Path(sys.argv[1]).absolute())
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = os.path.join(folder, "ours"), os.path.join(folder, "nanogpt")
        os.mkdir(theirs)
        environment = {**os.environ, "HF_HOME": os.path.join(folder, "hf"), "HF_HUB_OFFLINE": "1"}
        script = str(Path(__file__).resolve())
        rows = {
            "nanoGPT's recipe": measure([sys.executable, script, "nanogpt", pattern, theirs], environment),
            "bare tiktoken": measure([sys.executable, script, "tiktoken", pattern, folder], environment),
            "prepare_owt.py": measure(
                [
                    sys.executable,
                    str(ROOT / "prepare_owt.py"),
                    "data=local",
                    f"data.files='{pattern}'",
                    f"data.dir={ours}",
                ],
                environment,
            ),
        }
        tokens = sum(os.path.getsize(os.path.join(ours, f"{name}.bin")) // 2 for name in ("train", "val"))
        same = all(Path(ours, f"{name}.bin").read_bytes() == Path(theirs, f"{name}.bin").read_bytes() for name in ("train", "val"))
    print(f"{tokens:,} tokens on {CORES} cores; bins {'identical' if same else 'DIFFERENT'}")
    print(f"{'':18}{'seconds':>9}{'tokens/s':>13}{'ratio':>7}{'peak MiB':>10}")
    base = rows["nanoGPT's recipe"][0]
    for name, (seconds, peak) in rows.items():
        print(f"{name:18}{seconds:9.1f}{tokens / seconds:13,.0f}{base / seconds:7.2f}{peak:10,.0f}")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)  # the repository's root, not scripts/
    if len(sys.argv) == 4 and sys.argv[1] in CONTENDERS:  # a process of its own, without our imports
        CONTENDERS[sys.argv[1]](sorted(glob.glob(sys.argv[2])), sys.argv[3])
    else:
        from cli.composition import ConfigError
        from cli.entry import ending_in_one_line

        with ending_in_one_line():
            main()
