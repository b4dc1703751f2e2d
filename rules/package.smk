# What reads these rules needs packedesm, but not all that the steps need: those may run in an
# environment that conda or a container brings. Then the source in this checkout will do.
import sys
from importlib.util import find_spec
from pathlib import Path

from snakemake.exceptions import WorkflowError

NEEDED = {
    "packedesm": "packedesm",
    "numpy": "numpy",
    "filelock": "filelock",
    "pynvml": "nvidia-ml-py",
}

checkout = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parent
brought = workflow.deployment_settings.deployment_method
linted = (
    not workflow.check_envvars
)  # a linter looks at rules wherever they are, and runs none


def is_missing(module):
    """Tell whether Python does not find a module; a mere folder of that name is none."""
    spec = find_spec(module)
    return spec is None or spec.origin is None


if (brought or linted) and is_missing("packedesm"):
    sys.path.insert(0, str(checkout / "src"))

if missing := [name for module, name in NEEDED.items() if is_missing(module)]:
    # These rules may have been read from the web.
    whole = f"'{checkout}'" if (checkout / "src").is_dir() else "CHECKOUT"
    wanted = whole if "packedesm" in missing else " ".join(missing)
    raise WorkflowError(
        f"the Python that runs Snakemake has no {', '.join(missing)}; install it by: "
        f"{sys.executable} -m pip install {wanted}"
    )

if brought:
    from packedesm.files import write_text

    # For envs/packedesm.post-deploy.sh: Snakemake runs a copy of that, elsewhere.
    write_text(Path(".snakemake/packedesm-checkout"), f"{checkout}\n")
