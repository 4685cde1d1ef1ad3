"""The models of a folder as parts of one pipeline: what exporters call them, and which of them make up what."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

__all__ = ["PipelineKind", "names_file", "part_of", "pipeline_of", "split_file"]

_PREFIX = "openvino_"
_SUFFIXES = (".xml", ".onnx")


@dataclass(frozen=True)
class PipelineKind:
    """A kind of pipeline, as optimum-intel exports it."""

    kind: str
    known_by: tuple[str, ...]
    """Parts that only such a folder has; any of them is enough."""
    main: tuple[str, ...]
    """The parts that hold most of the weights and bear few bits best. The others are small, or what they lose reaches
    all the rest."""

    def is_main(self, name: str) -> bool:
        """Whether the model with this path in the folder is one of those."""
        return any(fnmatchcase(part_of(name), part) for part in self.main)


_PIPELINES = (
    PipelineKind("vision-language", ("language_model",), ("language_model", "talker_model", "mtp_model")),
    PipelineKind("diffusion", ("unet", "transformer", "prior"), ("unet", "transformer*", "prior")),
    PipelineKind("text-to-speech", ("postnet", "vocoder"), ("encoder_model", "decoder_model")),
    PipelineKind("encoder-decoder", ("decoder_model",), ("encoder_model", "decoder_model", "decoder_with_past_model")),
    PipelineKind("segmentation", ("prompt_encoder_mask_decoder",), ("vision_encoder",)),
)


def part_of(name: str) -> str:
    """What a model is called in its pipeline, by its path in the folder: `language_model` for
    `openvino_language_model.xml`, `vae_decoder` for `vae_decoder/openvino_model.xml`."""
    path = PurePosixPath(name)
    own = path.stem.removeprefix(_PREFIX)
    return path.parent.name if own == "model" and path.parent.name else own


def pipeline_of(names: Collection[str]) -> PipelineKind | None:
    """The kind of pipeline that models with these paths in a folder make up; None for a model by itself, and for kinds
    that are not known."""
    parts = {part_of(name) for name in names}
    if len(parts) < 2:
        return None
    return next((one for one in _PIPELINES if parts & set(one.known_by)), None)


def names_file(pattern: str, name: str) -> bool:
    """Whether a pattern names the model with this path in its folder: by the path, by the file's name alone, or by what
    it is called in its pipeline; `*` and `?` stand for any characters."""
    return any(fnmatchcase(own, pattern) for own in (name, PurePosixPath(name).name, part_of(name)))


def split_file(pattern: str) -> tuple[str, str]:
    """The file that a pattern is for, and the rest: `openvino_language_model.xml:*q_proj*` is for one file's weights;
    the first is empty where it names none."""
    for suffix in _SUFFIXES:
        file, sign, rest = pattern.partition(f"{suffix}:")
        if sign and rest and not file.startswith("re:"):
            return file + suffix, rest
    return "", pattern
