"""Python programs started from a process that has imported torch already: a real process each, in a tenth of a second.

Importing torch takes seconds, and the tests start hundreds of programs. So each pytest process has one server, which imports
the heavy packages (none of ours) and forks. What it makes of itself is what `python script.py ...` would have been: its own
process id, child of the process that asked, with its standard streams, folder, environment, process group, command line and
signals. It ends as Python does, up to the last function of atexit. Taking a million objects apart after that would cost more
than most of the programs, so only those of several ranks do it. The programs that start programs themselves (torchrun, sweep.py)
have a server too, forked before they begin. So do pytest's own workers (-n 2), which are forked in the same way.

A start that differs in what is read before the first import (flags of Python, PYTHONPATH, the locale, ...), that has no script, or
that has a preexec_fn which cannot be sent, is a true start. So is every one where COLD_STARTS is set, and on systems without Linux.
"""

import atexit
import ctypes
import gc
import inspect
import io
import json
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HEAVY = (
    "datasets",
    "torch",
    "torch._dynamo",
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "torch.utils.tensorboard",
    "hydra",
    "hydra._internal.config_loader_impl",
    "hydra._internal.core_plugins.basic_launcher",
    "hydra._internal.core_plugins.basic_sweeper",
    "hydra._internal.core_plugins.bash_completion",
    "hydra._internal.core_plugins.file_config_source",
    "hydra._internal.core_plugins.importlib_resources_config_source",
    "hydra._internal.core_plugins.structured_config_source",
    "hydra.test_utils",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "numpy.random",
    "omegaconf",
    "safetensors.torch",
    "tiktoken",
    "tokenizers",
    "yaml",
)
LAUNCHERS = ("torch.distributed.run", "sweep.py")
WORKER = "import sys;exec(eval(sys.stdin.readline()))"  # what pytest-xdist starts its workers with: python -u -c WORKER
READ_EARLY = (
    "PYTHON",
    "HF_DATASETS",  # these four by datasets
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB",
    "LANG",
    "LC_",
    "LD_",
    "OMP_",
    "MKL_",
    "OPENBLAS",
    "MALLOC",
    "MPL",
    "CC",
    "CXX",
    "TORCH_LOGS",
    "TZ",
    "COLD_STARTS",
)
ROOM = 32_000  # bytes for a program's command line, and for its environment, as /proc shows them
PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None)

_execute_child = subprocess.Popen._execute_child
_parameters = inspect.signature(_execute_child)


# --- the side that asks


@dataclass
class Server:
    """A connection to a process that forks programs, and what its environment was when it was started."""

    connection: socket.socket
    environment: dict[str, str]
    lock: threading.Lock

    def start(self, request: dict, descriptors: list[int]) -> int:
        """Return the process id of a new program, a child of this process."""
        with self.lock:
            socket.send_fds(self.connection, [json.dumps(request).encode()], descriptors)
            answer = self.connection.recv(64)
        if not answer:
            raise RuntimeError("the server of warm starts has died")
        return int(answer)


_server: Server | None = None


def install() -> None:
    """Let subprocess start Python programs from a server, which begins with the first of them."""
    if sys.platform == "linux" and "COLD_STARTS" not in os.environ:
        subprocess.Popen._execute_child = execute_child


def begin() -> None:
    """Start the server, which ends with this process; whoever asks it first waits until it is ready."""
    if _server or subprocess.Popen._execute_child is not execute_child:
        return
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")} | {"OMP_NUM_THREADS": "1"}
    subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno()), "." * ROOM],
        executable=sys.executable,  # so given, it is a true start
        env=environment | {"ROOM": "." * ROOM},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        process_group=0,  # Ctrl-C is for the programs
    )
    theirs.close()
    use(ours, environment)


def use(connection: socket.socket, environment: dict[str, str]) -> None:
    global _server
    _server = Server(connection, environment, threading.Lock())
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the server's child leaves behind becomes our child
    subprocess.Popen._execute_child = execute_child


def execute_child(self, *positional, **named):
    """Stand for Popen._execute_child: the same process, from the server where that can be."""
    call = _parameters.bind(self, *positional, **named).arguments
    start = warm_request(call)
    if start is None:
        return _execute_child(self, *positional, **named)
    streams = [call[pipe] if call[pipe] != -1 else i for i, pipe in enumerate(("p2cread", "c2pwrite", "errwrite"))]
    self.pid = _server.start(start, [*streams, *call["pass_fds"]])
    self._child_created = True
    self._close_pipe_fds(*(call[pipe] for pipe in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")))


def warm_request(call: dict) -> dict | None:
    """Return what the server has to know of a call of Popen, or None if it has to be a true start."""
    if isinstance(call["args"], (str, bytes, os.PathLike)) or call["shell"] or call["executable"]:
        return None
    arguments = [os.fsdecode(argument) for argument in call["args"]]
    environment = {os.fsdecode(k): os.fsdecode(v) for k, v in (os.environ if call["env"] is None else call["env"]).items()}
    cwd = os.path.abspath(os.fsdecode(call["cwd"] or "."))
    program = arguments[1:]
    if is_unbuffered := program[:1] == ["-u"]:
        program = program[1:]
    is_worker = program == ["-c", WORKER]
    is_module = program[:1] == ["-m"]
    is_script = bool(program) and program[0].endswith(".py") and os.path.isfile(os.path.join(cwd, program[0]))
    privileged = any(call.get(key) not in (None, -1) for key in ("gid", "gids", "uid", "umask"))
    if arguments[0] != sys.executable or not (is_worker or is_module or is_script) or privileged or not os.path.isdir(cwd):
        return None
    begin()
    if _server is None or read_early(environment) != read_early(_server.environment):
        return None
    try:
        preexec = b64encode(pickle.dumps(call["preexec_fn"])).decode()
    except (pickle.PicklingError, AttributeError, TypeError):
        return None
    return {
        "arguments": arguments,
        "module": program[1] if is_module else None,
        "is_worker": is_worker,
        "argv": program[:1] if is_worker else program[1:] if is_module else program,
        "is_unbuffered": is_unbuffered,
        "environment": environment,
        "cwd": cwd,
        "parent": os.getpid(),
        "session": bool(call["start_new_session"]),
        "group": call["process_group"] if call["process_group"] != -1 else os.getpgrp(),
        "preexec": preexec,
        "pass_fds": list(call["pass_fds"]),
    }


def read_early(environment: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key.startswith(READ_EARLY)}


# --- the server, and what is forked from it


class Program:
    """What a forked process is to become."""

    def __init__(self, request: dict, descriptors: list[int], between: int):
        self.request = request
        self.between = between  # the process that forked this one, and ends at once
        self.descriptors = descriptors
        self.is_launcher = request["is_worker"] or (request["module"] or Path(request["argv"][0]).name) in LAUNCHERS

    def take_place(self) -> None:
        """Take parent, group, streams, folder and environment of the request, and call its preexec_fn."""
        request = self.request
        while os.getppid() == self.between:
            time.sleep(0.001)
        if os.getppid() != request["parent"]:  # it has died: there is nobody to be a program for
            os._exit(1)
        if request["session"]:
            os.setsid()
        elif request["group"] != os.getpgrp():
            os.setpgid(0, request["group"])
        place(self.descriptors, [0, 1, 2, *request["pass_fds"]])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where a preexec_fn of ours may be found
        if preexec := pickle.loads(b64decode(request["preexec"])):  # called here, so that the program's own server has it as well
            preexec()
        del sys.path[0]

    def run(self) -> None:
        """Run the program as Python would, in a __main__ of its own; what it raises is for the caller to let through."""
        request = self.request
        show(48, [os.fsencode(argument) for argument in request["arguments"]])
        show(50, [os.fsencode(f"{key}={value}") for key, value in request["environment"].items()])
        open_streams(request["is_unbuffered"])
        if request["environment"].keys() & {"COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"}:
            import coverage

            coverage.process_startup()
        sys.argv, sys.orig_argv[:] = request["argv"], request["arguments"]
        if request["is_worker"]:
            sys.modules["warm"] = sys.modules["__main__"]  # which has the server that tests/conftest.py would begin
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        main.__dict__["__builtins__"] = __builtins__
        if request["is_worker"]:
            sys.path[0] = ""
            exec(WORKER, main.__dict__)
        elif request["module"]:
            sys.path[0] = os.getcwd()
            sys.modules.pop(request["module"], None)  # it is to be __main__
            runpy._run_module_as_main(request["module"])
        else:
            script = os.path.abspath(request["argv"][0])
            sys.path[0] = os.path.dirname(os.path.realpath(script))
            main.__file__ = script
            with open(script, "rb") as file:
                code = compile(file.read(), script, "exec")
            exec(code, main.__dict__)


def open_streams(is_unbuffered: bool) -> None:
    """Open sys.stdin, stdout and stderr as Python does at its start; those of the server remember what they were."""
    is_unbuffered = is_unbuffered or bool(os.environ.get("PYTHONUNBUFFERED"))
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        binary = open(number, "wb" if number else "rb", buffering=0 if is_unbuffered and number else -1, closefd=False)
        text = io.TextIOWrapper(
            binary,
            getattr(sys, name).encoding,
            getattr(sys, name).errors,
            newline="\n" if number else None,
            line_buffering=not is_unbuffered and (number == 2 or os.isatty(number)),
            write_through=is_unbuffered and number > 0,
        )
        setattr(text, "mode", "w" if number else "r")  # noqa: B010  a property, says its type
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)


def place(descriptors: list[int], numbers: list[int]) -> None:
    """Make the descriptors those numbers, whatever has them now."""
    above = max([*numbers, *descriptors]) + 1
    for offset, descriptor in enumerate(descriptors):
        os.dup2(descriptor, above + offset, inheritable=False)
        os.close(descriptor)
    for offset, number in enumerate(numbers):
        os.dup2(above + offset, number)
        os.close(above + offset)


def show(field: int, parts: list[bytes]) -> None:
    """Write what /proc shows of this process: its command line (field 48 of stat) or its environment (50)."""
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[field - 3 : field - 1])
    text = b"".join(part + b"\0" for part in parts)[: end - begin - 1]
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


def receive(connection: socket.socket) -> Program | None:
    """Fork as often as the other side asks. Return the program in the process that is to be one, and None at the end."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 16)
        if not message:
            return None
        reading, writing = os.pipe()
        between = os.fork()
        if not between:
            between = os.getpid()
            child = os.fork()
            if child:
                os.write(writing, str(child).encode())
                os._exit(0)
            os.close(reading)
            os.close(writing)
            connection.close()
            return Program(json.loads(message), descriptors, between)
        for descriptor in (*descriptors, writing):
            os.close(descriptor)
        os.waitpid(between, 0)  # from here on the child is the child of whom asked
        connection.send(os.read(reading, 64))
        os.close(reading)


def become_a_program(connection: socket.socket) -> Program | None:
    """Serve a connection, and return in each process that is forked for a program, with the server that it may need."""
    while True:
        program = receive(connection)
        if program is None:
            return None
        program.take_place()
        if not program.is_launcher:
            return program
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork():
            theirs.close()
            use(ours, program.request["environment"])
            return program
        ours.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing, number)
        os.close(nothing)
        connection = theirs


def warm_up() -> None:
    import importlib

    gc.disable()  # a fifth of the time: an import leaves next to no garbage
    for name in HEAVY:
        with suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    others = [path for path in Path("/proc/self/task").iterdir() if path.name != str(os.getpid())]
    lost = {(path / "comm").read_text().strip() for path in others} - {"jemalloc_bg_thd"}  # Arrow's, which minds forks itself
    assert not lost, f"a fork would lose these threads: {lost}"
    gc.collect()
    gc.freeze()
    gc.enable()


class Ending:
    """The end of a program by its exit code, where that is known; where it is not, Python goes on to its own."""

    code: int | None = None

    def run(self, program: Program) -> None:
        """Run the program; what it raises passes, for Python to print."""
        has_ranks = program.is_launcher or "RANK" in program.request["environment"]  # what lives in C++ has something to say
        code: int | None = 1
        try:
            program.run()
            code = 0
        except SystemExit as error:
            code = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
            raise
        except KeyboardInterrupt:
            code = None  # it ends by the signal
            raise
        finally:
            self.code = None if has_ranks else code

    def leave(self) -> None:
        """End the process: the first function given to atexit, and so the last that it calls."""
        if self.code is not None:
            with suppress(OSError, ValueError):  # Python has words for it
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(self.code & 0xFF)


if __name__ == "__main__":
    ending = Ending()
    atexit.register(ending.leave)
    warm_up()
    program = become_a_program(socket.socket(fileno=int(sys.argv[1])))
    if program:
        ending.run(program)
