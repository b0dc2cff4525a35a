"""What the corpus tests share: small corpora on disk, nanoGPT's recipe in its plainest form, and the command itself."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpus.settings import DataConfig, PrepareConfig, TokenizerConfig
from corpus.tokenizer import make_tokenizer

ROOT = Path(__file__).resolve().parent.parent
EOT = 50256


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Return documents of very different lengths, some empty, some that spell EOT."""
    generator = random.Random(seed)
    words = [
        "the",
        "of",
        "and",
        "Model's",
        "tokens,",
        "1984",
        "naïve",
        "漢字",
        "🙂",
        "\n\n",
        "",
        "",
        "tab\t",
        "don't",
        "<|endoftext|>",
        "x=1;",
        "end.",
        "",
    ]
    texts = [" ".join(generator.choices(words, k=generator.choice((1, 20, 300)))) for _ in range(count)]
    texts[count // 2] = ""
    return texts


def write_parquet(path: Path, texts: list, rows: int = 7, **columns) -> str:
    pq.write_table(pa.table({"text": pa.array(texts, type=pa.string()), **columns}), path, row_group_size=rows)
    return str(path)


def write_shards(folder: Path, texts: list[str], shards: int = 3) -> str:
    """Write texts over several parquet files of several row groups and return the glob."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        write_parquet(folder / f"{shard}.parquet", texts[shard * len(texts) // shards : (shard + 1) * len(texts) // shards])
    return str(folder / "*.parquet")


def local_config(out: Path, files, **settings) -> PrepareConfig:
    """Return what the command would compose; val_fraction is large, since the corpora are small."""
    top = {key: settings.pop(key) for key in ("num_proc", "limit_documents", "overwrite", "adopt", "on_bad_row") if key in settings}
    files_dir = settings.pop("tokenizer_files", None)
    data = DataConfig(**{"name": "local", "dir": str(out), "source": "files", "files": files, "val_fraction": 0.1, **settings})
    return PrepareConfig(data, TokenizerConfig(data.tokenizer, files_dir), **top)


def nanogpt_bins(files: list[str], cache: Path, val_fraction: float = 0.1) -> dict[str, bytes]:
    """Return the bins of nanoGPT's data/openwebtext/prepare.py: load_dataset, train_test_split, map, all ids in order."""
    import datasets

    encoding = make_tokenizer("gpt2")
    dataset = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache))
    split = dataset.train_test_split(test_size=val_fraction, seed=2357, shuffle=True)
    split["val"] = split.pop("test")
    tokenized = split.map(lambda row: {"ids": [*encoding.encode_ordinary(row["text"]), EOT]}, remove_columns=dataset.column_names)
    return {
        name: np.concatenate([np.array(ids, dtype=np.uint16) for ids in rows[:]["ids"]]).tobytes()
        for name, rows in tokenized.items()
    }


def read_bins(folder: Path) -> dict[str, bytes]:
    return {name: (folder / f"{name}.bin").read_bytes() for name in ("train", "val")}


def run_command(*arguments: str, before: str = "", **options) -> subprocess.CompletedProcess:
    """Run prepare_owt.py in a process of its own; before is Python that runs first, to inject a fault."""
    return subprocess.run(command(*arguments, before=before), capture_output=True, text=True, timeout=60, cwd=ROOT, **options)


def command(*arguments: str, before: str = "") -> list[str]:
    if not before:
        return [sys.executable, str(ROOT / "prepare_owt.py"), *arguments]
    start = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['prepare_owt.py', *sys.argv[1:]]"
    return [
        sys.executable,
        "-c",
        f"{start}\n{before}\nrunpy.run_path({str(ROOT / 'prepare_owt.py')!r}, run_name='__main__')",
        *arguments,
    ]


def is_alive(pid: int) -> bool:
    """Say whether a process still runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
