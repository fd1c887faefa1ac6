"""What `-o` means, as tables: every option of docs/MOUNT.md, what fstab adds for others, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fspf.core.errors import UsageError
from fspf.core.freshness import Freshness
from fspf.mount.options import (
    FLAGS,
    IGNORED,
    IMPOSSIBLE,
    VALUES,
    MountOptions,
    help_text,
    parse_options,
    split_cache,
    split_words,
)

DOCUMENT = (Path(__file__).parents[3] / "docs" / "MOUNT.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], MountOptions()),
        (["ro"], MountOptions(read_only=True)),
        (["ro,rw"], MountOptions()),
        (["ro", "rw,noatime"], MountOptions(atime=False)),
        (["noatime,relatime,nodiratime"], MountOptions(diratime=False)),
        (["allow_other,noexec,nonempty"], MountOptions(allow_other=True, exec=False, nonempty=True)),
        (["suid,dev"], MountOptions(suid=True, dev=True)),
        (["sync"], MountOptions(sync=True)),
        (["sync,async"], MountOptions()),
        (["auto_unmount,guard"], MountOptions(auto_unmount=True, guard=True)),
        (["uid=1000,gid=0,umask=027"], MountOptions(view_uid=1000, view_gid=0, view_umask=0o027)),
        (["uid=root,gid=daemon,umask=0"], MountOptions(view_uid=0, view_gid=1, view_umask=0)),
        (["umask=0077"], MountOptions(view_umask=0o077)),
        (["uid=4294967294"], MountOptions(view_uid=4294967294)),
        (["commit=0.5,cache=64M"], MountOptions(commit_interval_s=0.5, total_cache_bytes=64 << 20)),
        (["commit=5"], MountOptions(commit_interval_s=5.0)),
        (["commit=500ms,cache=1g"], MountOptions(commit_interval_s=0.5, total_cache_bytes=1 << 30)),
        (["idle=10m"], MountOptions(idle_s=600.0)),
        (["idle=90"], MountOptions(idle_s=90.0)),
        (["idle=1.5h"], MountOptions(idle_s=5400.0)),
        (["idle=2d"], MountOptions(idle_s=172800.0)),
        (["freshness=strict"], MountOptions(freshness=Freshness.strict())),
        (["freshness=none"], MountOptions(freshness=Freshness.none())),
        (["freshness=bounded:500ms"], MountOptions(freshness=Freshness.bounded(500))),
        (["freshness=bounded:500ms/64"], MountOptions(freshness=Freshness.bounded(500, 64))),
        (['freshness="bounded:500ms,64",ro'], MountOptions(freshness=Freshness.bounded(500, 64), read_only=True)),
        (["context=system_u:object_r:t:s0"], MountOptions(context="system_u:object_r:t:s0")),
        (['context="a:b:c:s0:c1,c2",ro'], MountOptions(context="a:b:c:s0:c1,c2", read_only=True)),
        (["fsname=a b"], MountOptions(fsname="a b")),
        (["metrics=/run/m.prom,log=/var/log/x"], MountOptions(metrics="/run/m.prom", log="/var/log/x")),
        (["cas=sqlite:///etc/cas,passphrase_file=/p"], MountOptions(cas="sqlite:///etc/cas", passphrase_file="/p")),
        (['cas="/a,b"'], MountOptions(cas="/a,b")),
        (["defaults,_netdev,x-systemd.automount,,"], MountOptions()),
        (["auto,noauto,nofail,user,users,nouser,owner,group,user=alice,X-mount.mkdir,comment=hi"], MountOptions()),
        (["x-systemd.requires=network.target,x-gvfs-name=a%20b"], MountOptions()),
    ],
)
def test_options(texts: list[str], expected: MountOptions) -> None:
    assert parse_options(texts, is_root=True) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("what", "unknown mount option 'what': there are ro, "),
        ("Ro", "unknown mount option 'Ro'"),
        ("ro=1", "takes no value"),
        ("commit", "needs a value: commit=TIME"),
        ("commit=", "commit=: a time"),
        ("commit=0", "commit=0"),
        ("commit=nan", "commit=nan"),
        ("commit=-1", "commit=-1"),
        ("commit=1e3", "commit=1e3"),
        ("commit=٣", "commit="),
        ("idle=10x", "idle=10x"),
        ("idle=367d", "366d"),
        ("cache=", "cache=: a size"),
        ("cache=4k", "at least 1M"),
        ("cache=x", "cache=x"),
        ("cache=-1M", "cache=-1M"),
        ("cache=2048G", "cache=2048G"),
        ("fsname", "needs a value"),
        ("fsname=", "printable"),
        ("uid=-1", "a number or a name"),
        ("uid=4294967295", "largest"),
        ("uid=no-such-user", "uid=no-such-user"),
        ("gid=no-such-group", "gid=no-such-group"),
        ("umask=8", "octal"),
        ("umask=1777", "octal"),
        ("umask=", "octal"),
        ("context=", "SELinux label"),
        ("context=a b", "SELinux label"),
        ("freshness=strickt", "freshness=strickt"),
        ("freshness=bounded", "bounded:500ms"),
        ("strictatime", "relatime or noatime"),
        ("remount", "mount -o remount,ro"),
        ("allow_root", "allow_other"),
        ("keyfile=/etc/key", "passphrase_file"),
    ],
)
def test_what_is_refused_says_what_would_do(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_options([text], is_root=True)


@pytest.mark.parametrize("text", ["passphrase=hunter2", "password=hunter2", "pasphrase=hunter2"])
def test_a_secret_that_was_given_by_mistake_is_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_options([text], is_root=True)
    assert "hunter2" not in str(caught.value)


def test_sloppy_leaves_out_what_is_unknown_but_not_what_is_wrong() -> None:
    assert parse_options(["what,ever=1,ro"], is_root=True, sloppy=True) == MountOptions(read_only=True)
    with pytest.raises(UsageError):
        parse_options(["what,cache=none"], is_root=True, sloppy=True)


def test_only_root_may_have_set_id_programs_and_devices() -> None:
    for text in ("suid", "dev"):
        with pytest.raises(UsageError):
            parse_options([text], is_root=False)
    assert not parse_options(["nosuid,nodev"], is_root=False).suid


def test_relative_paths_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = parse_options(["metrics=m.prom,passphrase_file=secret,log=l"], is_root=True)
    assert (options.metrics, options.passphrase_file, options.log) == tuple(
        str(tmp_path / name) for name in ("m.prom", "secret", "l")
    )


def test_words_are_split_as_mount_8_does() -> None:
    assert list(split_words('a,b="c,d",,e=" x, y ",f"')) == ["a", 'b="c,d"', 'e=" x, y "', 'f"']


@pytest.mark.parametrize("total", [1 << 20, 64 << 20, (64 << 20) + 1, 12345678, 1 << 40])
def test_the_shares_of_the_cache_add_up_to_what_was_asked_for(total: int) -> None:
    shares = split_cache(total)
    assert sum(shares) == total
    assert min(shares) >= total // 11
    assert shares.pages == shares.nodes // 4  # what `Volume` takes by itself
    options = MountOptions(total_cache_bytes=total)
    assert options.cache_bytes + options.cache_bytes // 4 + options.meta_cache_bytes == total


def test_no_word_has_two_meanings() -> None:
    sets = [set(FLAGS), set(VALUES), set(IGNORED), set(IMPOSSIBLE)]
    assert len(set().union(*sets)) == sum(map(len, sets))


def test_every_option_is_in_the_help_and_in_the_document() -> None:
    table = DOCUMENT.split("## Options")[1].split("\n## ")[0]
    documented = set(
        re.findall(r"`([a-z_]+)(?:=[^`]*)?`", "\n".join(re.findall(r"^\| ([^|]*) \|", table, re.MULTILINE)))
    )
    assert documented == set(FLAGS) | set(VALUES)
    for name in (*FLAGS, *VALUES):
        assert re.search(rf"^  {name}[= ]", help_text(), re.MULTILINE)
