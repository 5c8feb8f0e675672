"""`minivllm quantize OUT_FOLDER ...`: a model in the composed precision, written as a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.errors import CommandError, one_line
from experiments.plan import plan_sweep
from experiments.points import freeze


def quantize(folder: str, overrides: Sequence[str]) -> str:
    """Compose, load, write.

    Args:
        folder: what is written; absent or empty.
        overrides: as given on the command line.

    Returns:
        What was written, in two lines.

    Raises:
        CommandError: something that does not exist or fit; nothing is written then.
    """
    jobs = plan_sweep(overrides).jobs
    if len(jobs) > 1:
        raise CommandError(f"minivllm quantize writes one model, these are {len(jobs)}")
    try:
        settings = freeze(jobs[0].config)
        # Late, so that a mistake on the command line is answered before torch is imported.
        from minivllm.quantization.save import save_quantized

        saved = save_quantized(settings.engine, Path(folder).expanduser().absolute())
    except ValueError as error:
        raise CommandError(one_line(error)) from error
    files = "1 file" if saved.num_files == 1 else f"{saved.num_files} files"
    ignored = ", ".join(saved.ignored[:3]) + (f" and {len(saved.ignored) - 3} more" if len(saved.ignored) > 3 else "")
    return (
        f"{folder}: {files} of weights, {saved.num_bytes / 1e6:.1f} MB: {'; '.join(saved.forms)}; as trained: "
        f"{ignored or 'none'}\nminivllm run model=hf model.path={folder}"
    )
