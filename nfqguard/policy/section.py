"""A table of the configuration. Keys are written with hyphens in TOML (`max-data`) and with underscores in Python."""
from __future__ import annotations

from pydantic import BaseModel, ConfigDict


def hyphenate(name: str) -> str:
    """The TOML spelling of a field name."""
    return name.replace("_", "-")


class Section(BaseModel):
    """Unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=hyphenate, populate_by_name=True,
                              use_attribute_docstrings=True)

    @classmethod
    def spellings(cls) -> list[str]:
        """The keys as an operator writes them, in the order of the model."""
        return [field.alias or hyphenate(name) for name, field in cls.model_fields.items()]
