"""Train tiny runs under random faults and compare each, bit for bit, with an undisturbed one.

    python scripts/soak.py MINUTES [SEED] [folder=FOLDER]

    minutes=MINUTES   how long runs are disturbed
    seed=0            chooses the faults: which, when, what is damaged
    folder=null       where to work; null: a temporary folder, deleted after success

A run is started again after every fault until it is done; runs of one process and of two under torchrun alternate, and so
do the arms. Where exactly a signal lands is up to the clock.
Exit codes: 0 no difference and nothing unexpected, 1 otherwise (the folder is then kept), 2 wrong usage.
"""

import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from cli.arguments import PATH, Program


@dataclass
class Settings:
    minutes: float
    seed: int = 0
    folder: Optional[str] = field(default=None, metadata=PATH)


def main(settings: Settings) -> int:
    from lab.soak.soak import Soak

    folder = Path(settings.folder or tempfile.mkdtemp(prefix="soak-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    soak, started = Soak(folder, settings.seed), time.monotonic()
    print(f"soaking for {settings.minutes:g} minutes with seed {settings.seed} in {folder}", flush=True)
    soak.prepare()
    deadline, number = started + 60 * settings.minutes, 0
    while time.monotonic() < deadline:
        soak.run(number, deadline)
        number += 1
    code = soak.report((time.monotonic() - started) / 60)
    if code == 0 and not settings.folder:
        shutil.rmtree(folder)
    else:
        print(f"kept: {folder}")
    return code


PROGRAM = Program(main, Settings, ("minutes", "seed"), __doc__)
