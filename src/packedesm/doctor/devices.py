"""What the processes that tried the devices have told, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from packedesm.device.lease import lease_folder
from packedesm.doctor.findings import FAULT, NOTE, Finding
from packedesm.doctor.places import gigabytes
from packedesm.doctor.probe import Answer, Probe
from packedesm.errors import Fault

_GPU_SECONDS = 120  # a driver that takes longer hangs
_REINSTALL = "install torch and packedesm again into this Python, in one environment"
_DRIVER = "ask who runs this machine; without a GPU, and slower, a run works with --device cpu"
_FIT = "install a torch for that CUDA or an older one, or a newer driver"
_BROKEN = "do not use this one: name others in CUDA_VISIBLE_DEVICES; ask who runs this machine"
_SAY_SO = "name another in the configuration, and report it with this output"
_FUSE = "nothing is needed; Triton wants a C compiler (gcc) and a cache that it can write to"
_COMPILE = "install a C++ compiler, then packedesm again (in a checkout: make)"


def devices(machine: Answer) -> Iterator[Finding]:
    """Yield what is said of torch, driver, GPUs and CPU, of which the process `machine` has told.

    Each GPU is tried, all at once.
    """
    yield from _torch(machine)
    gpus = machine.of("gpus") or []
    tried = [Probe("gpu", CUDA_VISIBLE_DEVICES=gpu["uuid"]) for gpu in gpus]
    answers = [probe.answer(_GPU_SECONDS) for probe in tried]
    reasons = [_unfit(answer) for answer in answers]
    yield from _gpus(machine, gpus)
    any_fit = None in reasons
    for number, (gpu, answer, unfit) in enumerate(zip(gpus, answers, reasons, strict=True)):
        yield _gpu(f"GPU {number}", gpu, answer, unfit, vital=not any_fit)
        if unfit is None:
            yield from _computing("GPU", f"GPU {number}", answer, vital=False)
    if cpu := machine.of("cpu"):
        yield from _cpu(cpu, machine, vital=not gpus)


def _torch(machine: Answer) -> Iterator[Finding]:
    torch = machine.of("torch")
    if torch is None:
        said = f"cannot be used: {machine.broken}"
        yield Finding("Software", "torch", said, _REINSTALL, FAULT, {})
        return
    built = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPUs"
    said = f"{torch['version']}, built for {built}"
    if machine.broken:
        said = f"{said}; the process that tried it ended: {machine.broken}"
        yield Finding("Software", "torch", said, _REINSTALL, FAULT, torch)
    else:
        yield Finding("Software", "torch", said, facts=torch)


def _gpus(machine: Answer, gpus: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield what is said of the driver, and of GPUs that there should be."""
    driver = machine.of("driver")
    if driver is None:
        yield Finding("GPU", "driver", "no NVIDIA driver answers")
    else:
        said = f"NVIDIA's {driver['version']}, for CUDA up to {driver['cuda']}"
        if driver["fits_torch"]:
            yield Finding("GPU", "driver", f"{said}, which fits this torch", facts=driver)
        else:
            yield Finding("GPU", "driver", f"{said}: no fit for this torch", _FIT, NOTE, driver)
    for reason in machine.of("unread") or []:
        yield Finding("GPU", "not readable", reason, _BROKEN, NOTE if gpus else FAULT)
    if refused := machine.of("refused"):
        yield Finding("GPU", "device", refused, _DRIVER, FAULT)
    elif not gpus and (reason := machine.of("reason")):
        yield Finding("GPU", "device", f"runs use the CPU: {reason}")
    if gpus:
        try:
            lease_folder()
        except Fault as error:
            said, _, advice = str(error).partition("; ")
            yield Finding("GPU", "leases", said, advice, FAULT)


def _gpu(
    name: str, gpu: Mapping[str, Any], answer: Answer, unfit: str | None, *, vital: bool
) -> Finding:
    words = [gpu["name"]]
    if gpu["memory_bytes"] is not None:
        free, memory = (gigabytes(gpu[key]) for key in ("free_bytes", "memory_bytes"))
        words.append(f"{free} of {memory} free")
    if gpu["processes"]:
        words.append(f"used by {gpu['processes']} other processes")
    capability = answer.of("capability")
    if capability:
        words.append("compute capability " + ".".join(map(str, capability)))
    facts = dict(gpu) | {"capability": capability, "unfit": unfit}
    if unfit is None:
        return Finding("GPU", name, ", ".join(words), facts=facts)
    said = f"{', '.join(words)}: cannot be used: {unfit}"
    advice = _DRIVER if vital else _BROKEN
    return Finding("GPU", name, said, advice, FAULT if vital else NOTE, facts)


def _unfit(answer: Answer) -> str | None:
    """Return why a job cannot use the GPU that was tried, or None."""
    told = [fact for fact in answer.told if fact.get("automatic") and "fault" in fact]
    wrong = f"{told[0]['dtype']}: {told[0]['fault']}" if told else None
    return answer.of("unfit") or wrong or answer.broken


def _cpu(cpu: Mapping[str, Any], machine: Answer, *, vital: bool) -> Iterator[Finding]:
    missing = machine.of("kernels")
    memory = f", {gigabytes(cpu['memory_bytes'])} of memory" if cpu["memory_bytes"] else ""
    can = cpu["instructions"] or "instructions unknown"
    said = f"{cpu['name']}, {cpu['threads']} threads{memory}, {can}"
    facts = {**cpu, "kernels_missing": missing}
    yield Finding("CPU", "CPU", said, facts=facts)
    if missing is None:
        yield Finding("CPU", "kernels", "compiled for this CPU: attention varlen_cpu")
    elif "compiled" in missing:
        said = f"attention sdpa, which is slower: of varlen_cpu, {missing.partition(';')[0]}"
        yield Finding("CPU", "kernels", said, _COMPILE, NOTE)
    else:
        yield Finding("CPU", "kernels", f"attention sdpa: of varlen_cpu, {missing}")
    yield from _computing("CPU", "CPU", machine, vital=vital)


def _computing(part: str, name: str, answer: Answer, *, vital: bool) -> Iterator[Finding]:
    """Yield whether each number format works on a device, and each backend of attention."""
    for fact in answer.told:
        if "dtype" in fact:
            status = FAULT if vital and fact["automatic"] else NOTE
            yield _dtype(part, f"{name} {fact['dtype']}", fact, status)
    calls = [fact for fact in answer.told if "attention" in fact]
    wrong = [fact for fact in calls if "fault" in fact]
    if wrong:
        said = "; ".join(
            f"{x['attention']} in {x['in']} does not work: {x['fault']}" for x in wrong
        )
        yield Finding(part, f"{name} attention", said, _SAY_SO, NOTE, {"tried": calls})
    elif calls:
        said = "; ".join(map(" ".join, _backends(calls)))
        yield Finding(part, f"{name} attention", said, facts={"tried": calls})


def _dtype(part: str, name: str, fact: dict[str, Any], amiss: str) -> Finding:
    if "fault" in fact:
        return Finding(part, name, f"does not work: {fact['fault']}", _SAY_SO, amiss, fact)
    if "lacking" in fact:
        return Finding(part, name, f"not here: {fact['lacking']}", facts=fact)
    default = ", which is the default here" if fact["automatic"] else ""
    said = f"works{default}: off by {fact['relative_l2']:.0e}, attention {fact['backend']}"
    if fact["slow"]:
        said = f"{said}; slower here than float32, for want of instructions"
    if fact["unfused"]:
        said = f"{said}; the steps between are slower: {fact['unfused']}"
        return Finding(part, name, said, _FUSE, NOTE, fact)
    return Finding(part, name, said, facts=fact)


def _backends(calls: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield each backend, and in which number formats it works, or why it does not here."""
    for backend in dict.fromkeys(call["attention"] for call in calls):
        mine = [call for call in calls if call["attention"] == backend]
        right = [call["in"] for call in mine if "lacking" not in call]
        yield backend, f"({', '.join(right)})" if right else f"not here: {mine[0]['lacking']}"
