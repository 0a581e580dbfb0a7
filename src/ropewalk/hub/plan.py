"""Where a plan's file is, on disk or on the Hugging Face Hub, and how it is read and written whole."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from torch import nn

from ropewalk.encodings.base import Encoding
from ropewalk.encodings.dope import DoPE
from ropewalk.encodings.model_rotation import is_own_rotation
from ropewalk.encodings.per_layer import PerLayer
from ropewalk.encodings.remap import Remap
from ropewalk.errors import ArgumentError, DamagedFileError, MismatchedModelError, unknown_name
from ropewalk.hub.fingerprint import ARCHITECTURE, checked_description, describe
from ropewalk.hub.model_card import plan_card
from ropewalk.hub.names import first_line, is_hub_id, one_line_hub_errors
from ropewalk.io import write_atomically
from ropewalk.patching.activation import WHEN
from ropewalk.patching.handle import Handle, handle_of
from ropewalk.patching.install import install
from ropewalk.validation import check_length

FILE = "plan.json"
FORMAT, FORMAT_VERSION = "ropewalk.plan", 1


def write_plan(path: Path, fields: dict[str, Any]) -> None:
    """Write the fields as JSON under our format's name: whole or, whatever happens, not at all.

    Raises:
        ArgumentError: the place can't be written; names the path.
    """
    content = {"format": FORMAT, "format_version": FORMAT_VERSION} | fields
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text, argument="directory")


def read_plan(path: Path) -> dict[str, Any]:
    """The fields that `write_plan` wrote.

    Raises:
        ArgumentError: the file can't be read.
        DamagedFileError: not JSON, not a plan, or a plan of a later version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError("plan", str(path), f"can't be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path}: isn't JSON ({first_line(error)}); save the plan again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DamagedFileError(f"{path}: isn't a plan (no format {FORMAT!r}); give a folder made by save_pretrained")
    version = content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DamagedFileError(f"{path}: has format_version {version!r}; it should be {FORMAT_VERSION}")
    if version > FORMAT_VERSION:
        raise DamagedFileError(
            f"{path}: has format_version {version}, this ropewalk reads {FORMAT_VERSION}; update ropewalk"
        )
    return {name: value for name, value in content.items() if name not in ("format", "format_version")}


def find_plan(directory_or_id: str, revision: str | None, token: str | None) -> Path:
    """The path of the plan's file: in a local folder, else downloaded from the hub.

    Raises:
        ArgumentError: no such folder or repository, or one without a plan.
    """
    folder = Path(directory_or_id).expanduser()
    if folder.is_dir():
        if (folder / FILE).is_file():
            return folder / FILE
        raise ArgumentError("plan", directory_or_id, f"this folder holds no {FILE}; give one made by save_pretrained")
    if folder.is_file():
        raise ArgumentError("plan", directory_or_id, "is a file; give the folder that it is in")
    if not is_hub_id(directory_or_id):
        raise ArgumentError("plan", directory_or_id, "no such folder; check the path, or give owner/name on the hub")
    from huggingface_hub import hf_hub_download

    with one_line_hub_errors(directory_or_id, "isn't a local folder, and its plan can't be had from"):
        return Path(hf_hub_download(directory_or_id, FILE, revision=revision, token=token))


@dataclasses.dataclass(frozen=True)
class Plan:
    """An encoding for one model, chosen for a target length; made by `Plan.of`, read by `from_pretrained`.

    Args:
        encoding: what is installed.
        model: the model that the plan was made for, as `describe` tells it.
        original_length: the training length in tokens.
        target_length: the length in tokens that the plan was made for, at least the training length.
        when: `long` (generations that fit the training length run plain) or `always`.
        evidence: measured figures, plain JSON.
        ropewalk_version, transformers_version, torch_version: what the plan was made with.

    Raises:
        ArgumentError: a value of the wrong kind, or a target length shorter than the training length.
    """

    encoding: Encoding
    model: dict[str, Any]
    original_length: int
    target_length: int
    when: str = "long"
    evidence: dict[str, Any] = dataclasses.field(default_factory=dict)
    ropewalk_version: str = dataclasses.field(default_factory=lambda: _version("ropewalk"))
    transformers_version: str = dataclasses.field(default_factory=lambda: _version("transformers"))
    torch_version: str = dataclasses.field(default_factory=lambda: _version("torch"))

    def __post_init__(self) -> None:
        if not isinstance(self.encoding, Encoding):
            raise ArgumentError("encoding", self.encoding, "give an encoding, such as DoPE(...) or RoPE(...)")
        object.__setattr__(self, "model", checked_description(self.model))
        check_length("original_length", self.original_length)
        check_length("target_length", self.target_length)
        if self.target_length < self.original_length:
            remedy = f"is shorter than the training length; give {self.original_length} or more"
            raise ArgumentError("target_length", self.target_length, remedy)
        _check_when(self.when)
        object.__setattr__(self, "evidence", _plain_json("evidence", self.evidence))
        for name in ("ropewalk_version", "transformers_version", "torch_version"):
            if not isinstance(getattr(self, name), str):
                raise ArgumentError(name, getattr(self, name), "give a version as text")

    @classmethod
    def of(
        cls,
        model: nn.Module,
        encoding: Encoding,
        target_length: int,
        original_length: int | None = None,
        when: str = "long",
        evidence: dict[str, Any] | None = None,
    ) -> Plan:
        """A plan for a loaded model; its training length is the config's unless given.

        Raises:
            ArgumentError: as the class does, or the config doesn't tell the training length.
            UnsupportedModelError: not a Hugging Face model.
        """
        described = describe(model)
        length = described["original_length"] if original_length is None else original_length
        if length is None:
            raise ArgumentError("original_length", None, "the model's config doesn't tell it; give it in tokens")
        return cls(encoding, described, length, target_length, when, {} if evidence is None else evidence)

    def install(self, model: nn.Module, when: str | None = None, strict: bool = False) -> Handle:
        """Give a model the plan's encoding; the handle's `remove()` undoes it.

        A model saved with RoPE installed, as `ropewalk train` does it, has the very rotation of its architecture: that
        makes room for the plan.

        Args:
            model: the plan's model; one with other weights gets a warning, or is refused when `strict`.
            when: overrides the plan's.

        Raises:
            MismatchedModelError: a model of another shape; nothing has been touched.
            ArgumentError, UnsupportedModelError: as `ropewalk.install`.
        """
        when = self.when if when is None else when
        _check_when(when)
        self._check_model(model, strict)
        present = handle_of(model)
        if present is not None and present.encoding is not None and is_own_rotation(model, present.encoding):
            present.remove()
        return install(model, self.encoding, when=when, original_length=self.original_length)

    @contextmanager
    def installed(self, model: nn.Module, when: str | None = None, strict: bool = False) -> Iterator[nn.Module]:
        """`install` for the length of a with block; undone on exit, exception or not."""
        present = handle_of(model)
        handle = self.install(model, when, strict)
        try:
            yield model
        finally:
            handle.remove()
            if present is not None and present.encoding is not None:
                install(model, present.encoding, **present.options)

    def save_pretrained(self, directory: str | Path, push_to_hub: bool = False, repo_id: str | None = None) -> None:
        """Write `plan.json` into a folder, made if missing; a reader or a crash never sees half of it.

        With `push_to_hub` also upload it, to the repository `repo_id` or else one named like the folder.

        Raises:
            ArgumentError: the folder can't be written, or the hub refuses.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        write_plan(Path(directory) / FILE, fields | {"encoding": self.encoding.to_dict()})
        if push_to_hub:
            self.push_to_hub(repo_id or Path(directory).resolve().name)

    def push_to_hub(
        self, repo_id: str, private: bool | None = None, token: str | None = None, revision: str | None = None
    ) -> None:
        """Upload `plan.json` and a model card to a repository on the Hugging Face Hub, which is made if missing.

        Args:
            repo_id: `owner/name`, or a name in your own account.
            private: whether a new repository is private; your account's default when None.
            token: an access token; the one you are logged in with when None.
            revision: the branch, made if missing; the main one when None.

        Raises:
            ArgumentError: the hub refuses or can't be reached.
        """
        from huggingface_hub import HfApi

        with tempfile.TemporaryDirectory() as folder, one_line_hub_errors(repo_id, "can't be uploaded to"):
            self.save_pretrained(folder)
            api = HfApi(token=token)
            full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            write_atomically(Path(folder) / "README.md", plan_card(self, full_id))
            if revision is not None:
                api.create_branch(full_id, branch=revision, exist_ok=True)
            api.upload_folder(
                repo_id=full_id,
                folder_path=folder,
                revision=revision,
                commit_message="Upload a ropewalk plan",
            )

    @classmethod
    def from_pretrained(
        cls, directory_or_id: str | Path, revision: str | None = None, token: str | None = None
    ) -> Plan:
        """The plan that `save_pretrained` wrote to a folder, or `push_to_hub` to a repository.

        Args:
            directory_or_id: a folder, or `owner/name` on the Hugging Face Hub.
            revision, token: of a hub repository; no use for a folder.

        Raises:
            ArgumentError: no such folder or repository, or one without a plan.
            DamagedFileError: the file is damaged, of another kind or of a later version; says how.
        """
        path = find_plan(str(directory_or_id), revision, token)
        fields = read_plan(path)
        try:
            return cls._from_fields(fields)
        except ValueError as error:
            raise DamagedFileError(f"{path}: {first_line(error)}") from error
        # What an encoding makes of fields that are missing or of a wrong type; the file is to blame.
        except (TypeError, AttributeError, LookupError, RecursionError, ArithmeticError) as error:
            reason = f"no encoding can be made of it ({first_line(error)}); save the plan again"
            raise DamagedFileError(f"{path}: {reason}") from error

    def summary(self) -> str:
        """The plan in a few readable lines."""
        model = self.model
        long = f"for generations of more than {self.original_length} tokens"
        lines = [
            f"plan for {model['name'] or 'a model without a name'} ({model['model_type']}, "
            f"{model['num_layers']} layers, {model['num_heads']} query heads, "
            f"{model['num_kv_heads']} key/value heads)",
            f"  length: {self.target_length} tokens; trained on {self.original_length}",
            f"  encoding: {_encoding_line(self.encoding)}",
            f"  installed: {long if self.when == 'long' else self.when}",
        ]
        lines += [f"  {name}: {_short(value)}" for name, value in self.evidence.items()]
        versions = f"ropewalk {self.ropewalk_version}, transformers {self.transformers_version}"
        return "\n".join([*lines, f"  made with: {versions}, torch {self.torch_version}"])

    def _check_model(self, model: nn.Module, strict: bool) -> None:
        here = describe(model)
        differences = [
            f"{name}: plan {self.model[name]}, model {here[name]}"
            for name in ARCHITECTURE
            if self.model[name] != here[name]
        ]
        if differences:
            raise MismatchedModelError(f"the plan is for another model ({'; '.join(differences)})")
        if here["fingerprint"] is not None and here["fingerprint"] == self.model["fingerprint"]:
            return
        message = (
            f"the plan was made for other weights than these ({self.model['name'] or 'no name'}, here "
            f"{here['name'] or 'no name'}): a fine-tune or another quantisation? Measure before you trust it"
        )
        if strict:
            raise MismatchedModelError(message)
        warnings.warn(message, stacklevel=3)

    @classmethod
    def _from_fields(cls, data: dict[str, Any]) -> Plan:
        known = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in known if name not in data]:
            raise ValueError(f"lacks {', '.join(missing)}; save the plan again")
        if unknown := [name for name in data if name not in known]:
            raise ValueError(f"has unknown {', '.join(unknown)}; take it out or save the plan again")
        if not isinstance(data["encoding"], dict):
            raise ArgumentError("encoding", data["encoding"], "should be what an encoding's to_dict() gives")
        return cls(**(data | {"encoding": Encoding.from_dict(data["encoding"])}))


def _check_when(when: Any) -> None:
    if when not in WHEN:
        raise unknown_name("when", when, WHEN)


def _plain_json(argument: str, value: Any) -> dict[str, Any]:
    """The dict as a file gives it back, tuples as lists, so that a plan equals the one read from its file."""
    if not isinstance(value, dict):
        raise ArgumentError(argument, value, "give a dict")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        remedy = f"isn't plain JSON ({first_line(error)}); give text, finite numbers, lists and dicts"
        raise ArgumentError(argument, value, remedy) from error
    return plain


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a source tree that isn't installed
        return "not installed"


def _encoding_line(encoding: Encoding) -> str:
    """Kind, length rule and heads in one line; a list of frequencies or layers would be many."""
    if isinstance(encoding, DoPE):
        heads = ", ".join(f"{layer}.{head}" for layer, head in encoding.heads)
        view = "" if encoding.view == "both" else f", {encoding.view} view"
        changed = f"{encoding.mode} ({encoding.reading}{view}) in {len(encoding.heads)} heads (layer.head {heads})"
        return f"dope, mode {changed}; {_encoding_line(encoding.rope)}"
    if isinstance(encoding, PerLayer):
        lines = dict.fromkeys(_encoding_line(inner) for _, inner in encoding.layers)
        return f"per layer: {' | '.join(lines)}"
    if isinstance(encoding, Remap):
        return f"{encoding.kind} {encoding.sizes}; {_encoding_line(encoding.rope)}"
    rule = getattr(encoding, "rule", None)
    return encoding.kind if rule is None else f"{encoding.kind} with {_short(rule.to_dict())}"


def _short(value: Any) -> str:
    """A value from a file on one line; long lists by their length."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(held)}" for name, held in value.items() if held is not None)
    if isinstance(value, list):
        return f"[{', '.join(map(_short, value))}]" if len(value) <= 4 else f"[{len(value)} values]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
