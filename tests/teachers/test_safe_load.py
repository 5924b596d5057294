"""A checkpoint is data: nothing in a file runs, and nothing in it takes more memory than the file has."""

import io
import os
import pickle
import re
import resource
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from crt.errors import UserError
from crt.teachers.safe_load import load_checkpoint

PROOF = "it_ran"


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, how: str, where: Path):
        self.how, self.where = how, str(where / PROOF)

    def __reduce__(self):
        if self.how == "os.system":
            return os.system, (f"touch {self.where}",)
        if self.how == "exec":
            return exec, (f"open({self.where!r}, 'w')",)
        return open, (self.where, "w")


def torch_zip(path: Path, program: bytes, data: bytes = b"", **options) -> Path:
    """A file in torch's container with this pickle and one storage."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", data)
        archive.writestr("archive/version", "3\n")
    return path


def tensor_pickle(numel: int, shape: tuple[int, ...], stride: tuple[int, ...], container: str) -> bytes:
    """A state dict of one float tensor of this shape on a storage of `numel` numbers, as torch writes it."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self):
            from torch._utils import _rebuild_tensor_v2

            return _rebuild_tensor_v2, (Storage(), 0, shape, stride, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if not isinstance(obj, Storage):
                return None
            return "storage", torch.FloatStorage, "0", "cpu", numel, *([None] if container == "old" else [])

    out = io.BytesIO()
    Pickler(out, protocol=2).dump({"fc.weight": Tensor()})
    return out.getvalue()


@pytest.mark.parametrize("how", ["os.system", "exec", "open"])
@pytest.mark.parametrize("container", ["torch", "old", "pickle", "inside"])
def test_a_pickle_that_would_run_code_does_not(tmp_path, how, container):
    path, evil = tmp_path / "teacher.pth", Runs(how, tmp_path)
    if container == "pickle":
        path.write_bytes(pickle.dumps(evil))
    elif container == "inside":
        state = {"state_dict": {"conv1.weight": torch.zeros(3)}, "optimizer": evil}
        torch.save(state, path)
    else:
        torch.save(evil, path, _use_new_zipfile_serialization=container == "torch")
    with pytest.raises(UserError, match=r"not run|no torch and no safetensors") as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / PROOF).exists()
    if container == "torch":  # the same file is a real attack: unpickled without care, it runs
        torch.load(path, weights_only=False)
        assert (tmp_path / PROOF).exists()


def test_a_whole_module_is_named_and_not_built(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"'torch\.nn\.modules\.linear\.Linear'.*state_dict"):
        load_checkpoint(tmp_path / "a.pth")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    path = torch_zip(tmp_path / "bomb.pth", b"\0" * 200_000_000, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 300_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"unpacks to 200\d{6}"):
        load_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_members_that_overlap_are_more_than_the_file(tmp_path):
    """A zip whose directory names the same bytes again and again needs no compression to be a bomb."""
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", b"\0" * 1_000_000)
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        first = archive.filelist[0]
        for n in range(1, 50):
            copy = zipfile.ZipInfo(f"archive/data/{n}")
            copy.file_size = copy.compress_size = first.file_size
            copy.CRC, copy.header_offset = first.CRC, first.header_offset
            archive.filelist.append(copy)
    with pytest.raises(UserError, match="unpacks to"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("numel", "shape", "stride"),
    [
        (10**15, (10**15,), (1,)),  # a storage that no machine holds
        (4, (10**6, 10**6), (0, 0)),  # one number, spread over a petabyte
        (4, (10**12,), (1,)),  # beyond its storage
        (10**9, (10**9,), (1,)),  # beyond the file
    ],
)
@pytest.mark.parametrize("container", ["zip", "old"])
def test_a_tensor_of_absurd_size_is_refused(tmp_path, numel, shape, stride, container):
    program, path = tensor_pickle(numel, shape, stride, container), tmp_path / "huge.pth"
    if container == "zip":
        torch_zip(path, program, data=b"\0" * 16)
    else:
        head = b"".join(
            pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        )
        path.write_bytes(
            head + program + pickle.dumps(["0"], protocol=2) + struct.pack("<q", numel) + b"\0" * 16
        )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"damaged|do not use it"):
        load_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_the_forged_containers_are_otherwise_right(tmp_path):
    """The same two containers with honest sizes load: what is refused above is the size."""
    numbers = struct.pack("<4f", 1, 2, 3, 4)
    path = torch_zip(tmp_path / "a", tensor_pickle(4, (2, 2), (2, 1), "zip"), data=numbers)
    assert load_checkpoint(path)["fc.weight"].tolist() == [[1, 2], [3, 4]]
    head = b"".join(
        pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    program = tensor_pickle(4, (2, 2), (2, 1), "old")
    (tmp_path / "b").write_bytes(
        head + program + pickle.dumps(["0"], protocol=2) + struct.pack("<q", 4) + numbers
    )
    assert load_checkpoint(tmp_path / "b")["fc.weight"].tolist() == [[1, 2], [3, 4]]


def test_memory_that_no_machine_has_cannot_be_ordered_by_a_pickle(tmp_path):
    """bytearray(n) is on torch's own list of what a weights-only file may call."""

    class Much:
        def __reduce__(self):
            return bytearray, (10**15,)

    torch.save({"state_dict": Much()}, tmp_path / "a.pth")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="MemoryError"):
        load_checkpoint(tmp_path / "a.pth")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_torchs_advice_to_read_without_its_checks_is_not_passed_on(tmp_path):
    torch.save({"a": Runs("exec", tmp_path)}, tmp_path / "a.pth")
    with pytest.raises(UserError) as error:
        load_checkpoint(tmp_path / "a.pth")
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "archive/../../escaped"])
def test_a_member_that_points_out_of_the_archive(tmp_path, name):
    path = torch_zip(
        tmp_path / "a" / "b.pth" if (tmp_path / "a").mkdir() is None else tmp_path, pickle.dumps({}, 2)
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    with pytest.raises(UserError, match="outside of itself"):
        load_checkpoint(path)
    assert not list(tmp_path.rglob("escaped"))


def test_a_tar_is_not_unpacked(tmp_path):
    with tarfile.open(tmp_path / "checkpoint.pth.tar", "w") as archive:
        info = tarfile.TarInfo("../escaped")
        archive.addfile(info, io.BytesIO())
    with pytest.raises(UserError, match="no torch and no safetensors file"):
        load_checkpoint(tmp_path / "checkpoint.pth.tar")
    assert not list(tmp_path.parent.glob("escaped"))


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"a": {"dtype": "F32", "shape": [10**9, 10**6], "data_offsets": [0, 4 * 10**15]}}, b""),
        ({"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 16]}}, b"\0" * 16),
        (None, b""),
    ],
)
def test_safetensors_that_lie(tmp_path, header, body):
    import json

    text = json.dumps(header).encode() if header is not None else b"{" * 10
    length = len(text) if header is not None else 2**62
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + text + body)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("keep", [0, 10, 100, 1000])
def test_a_file_that_is_cut_off(tmp_path, keep):
    torch.save({"a": torch.rand(1000)}, tmp_path / "whole.pth")
    save_file({"a": torch.rand(1000)}, tmp_path / "whole.safetensors")
    for name in ("whole.pth", "whole.safetensors"):
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes((tmp_path / name).read_bytes()[:keep])
        with pytest.raises(UserError, match=re.escape(str(cut))):
            load_checkpoint(cut)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title>",
            "web page.*Google Drive",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa", "Git LFS pointer"),
        (b'{"error": "not found"}', "not found"),
        (b"PK\x03\x04 and then nothing", "damaged"),
        (b"\x7fELF", "no torch and no safetensors file"),
    ],
)
def test_what_came_instead_of_weights_is_said(tmp_path, content, said):
    (tmp_path / "teacher.pth").write_bytes(content)
    with pytest.raises(UserError, match=said):
        load_checkpoint(tmp_path / "teacher.pth")


def test_torchscript_and_other_zips(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(UserError, match="TorchScript"):
        load_checkpoint(tmp_path / "script.pt")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("teacher.pth", "x")
    with pytest.raises(UserError, match="torch did not write it"):
        load_checkpoint(tmp_path / "a.zip")


def test_a_lone_tensor_is_no_checkpoint(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "a.pth")
    with pytest.raises(UserError, match="holds a Tensor"):
        load_checkpoint(tmp_path / "a.pth")
