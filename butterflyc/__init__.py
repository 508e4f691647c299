"""butterflyc: a compiler for Butterfly mixture-of-experts models.

The import path of a file is ``butterflyc.`` plus its path in the repository.
"""

from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").is_file():  # a checkout: the parts lie beside this folder
    __path__.insert(0, str(_ROOT))

__version__ = "0.1.0"
