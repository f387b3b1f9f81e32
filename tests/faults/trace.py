"""Has the kernel stop a program at chosen moments (ptrace), for the tests of what a kill, or a disk
that hangs, leaves behind. Needs no rights but those to trace a process of one's own.

trace.py may                        exit code 0: this machine lets processes be traced
trace.py step CALLS STEPS COMMAND   COMMAND says "ready THREAD" and reads a line; behind that this
                                    thread makes so many system calls (counted at both ends), then
                                    so many instructions, and then the process is killed
trace.py cut CHANGES COMMAND        COMMAND is killed before it changes a file for the so many-th
                                    time; on SIGTERM at once
trace.py allow COMMAND              becomes COMMAND, which `hold` may trace, whose parent it is not
trace.py hold PROCESS [CALL...]     from now on no call of PROCESS that changes a file, or none of
                                    these, comes back: "held THREAD CALL". When this program is
                                    killed, all do.
"""
import ctypes
import os
import platform
import re
import signal
import stat
import struct
import subprocess
import sys

TRACEME, CONT, SINGLESTEP, SYSCALL = 0, 7, 9, 24
SETOPTIONS, SEIZE, INTERRUPT, GET_SYSCALL_INFO = 0x4200, 0x4206, 0x4207, 0x420E
MARK_CALLS, FOLLOW_THREADS, KILL_WITH_US = 0x1, 0x8, 0x100000
ENTRY = 1
WALL = 0x40000000
PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, ctypes.c_ulong(-1)
O_CREAT = 0o100

# Calls that change a file: name, number on x86-64, number on arm64 (0: there is none).
CALLS = """write 1 64, pwrite64 18 68, writev 20 66, pwritev 296 70, fsync 74 82, fdatasync 75 83,
ftruncate 77 46, fallocate 285 47, rename 82 0, renameat 264 38, renameat2 316 276, unlink 87 0,
unlinkat 263 35, mkdir 83 0, mkdirat 258 34, rmdir 84 0, openat 257 56"""
COLUMN = {"x86_64": 1, "aarch64": 2}[platform.machine()]
NAMES = {int(call.split()[COLUMN]): call.split()[0] for call in CALLS.split(",")}
NAMES.pop(0, None)

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(what, thread, address=None, data=None):
    if libc.ptrace(what, thread, address, data) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def resume(how, thread, status):
    """Lets a stopped thread go on, with the signal at which it was stopped, if it was one."""
    number = os.WSTOPSIG(status)
    is_ours = status >> 16 or number & 0x7F == signal.SIGTRAP
    try:
        ptrace(how, thread, None, None if is_ours else number)
    except ProcessLookupError:
        pass  # it was killed meanwhile


def change(thread):
    """The name of the call that a thread is about to make, if that changes a file."""
    info = ctypes.create_string_buffer(88)
    ptrace(GET_SYSCALL_INFO, thread, len(info), ctypes.addressof(info))
    is_entry, number, first, _, third = struct.unpack_from("<B23xQQQQ", info)
    name = NAMES.get(number) if is_entry == ENTRY else None
    if name == "openat" and not third & O_CREAT:
        return None
    if name in ("write", "writev"):
        # Not what goes into a pipe or wakes a thread.
        try:
            is_file = stat.S_ISREG(os.stat(f"/proc/{thread}/fd/{first}").st_mode)
        except OSError:
            is_file = False
        return name if is_file else None
    return name


def is_call(status):
    return os.WSTOPSIG(status) == signal.SIGTRAP | 0x80


def step(calls, steps, command):
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    said = (re.search(rb"ready (\d+)$", line.strip()) for line in child.stdout)
    ready = next(filter(None, said), None)
    if ready is None:
        sys.exit("it never was ready")
    thread = int(ready[1])
    ptrace(SEIZE, thread, None, KILL_WITH_US | MARK_CALLS)
    ptrace(INTERRUPT, thread)
    _, status = os.waitpid(thread, WALL)
    child.stdin.write(b"\n")
    child.stdin.flush()
    wait, go, stepped = os.waitpid, libc.ptrace, signal.SIGTRAP << 8 | 0x7F
    for how, count in (SYSCALL, calls), (SINGLESTEP, steps):
        for _ in range(count):
            if status == stepped:
                go(how, thread, None, None)
            else:
                resume(how, thread, status)
            _, status = wait(thread, WALL)
            if not os.WIFSTOPPED(status):
                sys.exit("it ended by itself")
    os.kill(child.pid, signal.SIGKILL)
    while os.WIFSTOPPED(os.waitpid(thread, WALL)[1]):
        pass
    if thread != child.pid:
        child.wait()


def cut(changes, command):
    child = os.fork()
    if child == 0:
        ptrace(TRACEME, 0)
        os.execvp(command[0], command)

    def end(*_):
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)
    _, status = os.waitpid(child, WALL)
    ptrace(SETOPTIONS, child, None, KILL_WITH_US | MARK_CALLS | FOLLOW_THREADS)
    resume(SYSCALL, child, status)
    while True:
        try:
            thread, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            return
        if not os.WIFSTOPPED(status):
            continue
        try:
            if is_call(status) and change(thread):
                changes -= 1
        except ProcessLookupError:
            continue
        if changes == 0:
            end()
        else:
            resume(SYSCALL, thread, status)


def hold(process, only):
    known = set()
    while True:
        fresh = set(map(int, os.listdir(f"/proc/{process}/task"))) - known
        if not fresh:
            break
        for thread in fresh:
            ptrace(SEIZE, thread, None, MARK_CALLS | FOLLOW_THREADS)
            ptrace(INTERRUPT, thread)
        known |= fresh
    waiting = set(known)
    while True:
        try:
            thread, status = os.waitpid(-1, WALL)
        except ChildProcessError:
            return
        try:
            is_stopped = os.WIFSTOPPED(status)
            call = change(thread) if is_stopped and is_call(status) else None
            if call and call in (only or [call]):
                with open(f"/proc/{process}/task/{thread}/comm") as name:
                    print("held", name.read().strip(), call, flush=True)
            elif is_stopped:
                resume(SYSCALL, thread, status)
        except (ProcessLookupError, FileNotFoundError):
            pass  # it was killed meanwhile
        # Once each thread was stopped, or has ended, none can slip through.
        if thread in waiting:
            waiting.discard(thread)
            if not waiting:
                print("holding", flush=True)


def may():
    child = subprocess.Popen(["sleep", "60"])
    try:
        ptrace(SEIZE, child.pid)
    finally:
        child.kill()


mode, *rest = sys.argv[1:]
if mode == "may":
    may()
elif mode == "step":
    step(int(rest[0]), int(rest[1]), rest[2:])
elif mode == "cut":
    cut(int(rest[0]), rest[1:])
elif mode == "hold":
    hold(int(rest[0]), rest[1:])
elif mode == "allow":
    # Kernels without Yama know no such thing, and need none.
    libc.prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0)
    os.execvp(rest[0], rest)
