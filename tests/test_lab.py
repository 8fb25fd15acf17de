"""The lab: it stands, it goes, whatever happened in between; its mail server is real, its access list holds."""
from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfqguard.lab import roots
from nfqguard.lab.dialogue import Dialogue
from nfqguard.lab.postfix import Postfix
from nfqguard.lab.recorder import Recorder
from nfqguard.lab.topology import NAMESPACES, Host, Lab, LabError

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]
PREFIX = f"labtest{os.getpid()}"


def remains(prefix: str) -> list[str]:
    """What there is of labs of that prefix: namespaces, files, processes that run in their namespaces."""
    names = sorted(path.name for path in NAMESPACES.glob(f"{prefix}*"))
    return names + sorted(path.name for path in Path("/run").glob(f"nfqguard-lab-{prefix}*"))


def inode(host: Host) -> int:
    return host.path.stat().st_ino


@pytest.fixture
def prefix() -> Iterator[str]:
    yield PREFIX
    Lab(PREFIX).down()
    assert remains(PREFIX) == []


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[Lab, Postfix]]:
    """A lab with both servers, each with its Postfix."""
    with Lab(f"{PREFIX}s", second=True) as lab:
        mail = Postfix(lab)
        mail.start()
        Postfix(lab, lab.second_server).start()
        yield lab, mail


def test_up_twice_keeps_what_stands(prefix: str) -> None:
    lab = Lab(prefix)
    lab.up()
    before = [inode(host) for host in lab.hosts]
    sleeper = lab.server.popen(["sleep", "60"])
    lab.up()
    assert [inode(host) for host in lab.hosts] == before
    assert sleeper.poll() is None
    lab.down()
    assert sleeper.wait(5) == -signal.SIGTERM


def test_up_with_other_options_makes_it_anew(prefix: str) -> None:
    Lab(prefix, second=True).up()
    lab = Lab(prefix, mtu=9000)
    lab.up()
    assert not Lab(prefix, second=True).second_server.exists()
    assert lab.server.call(lambda: mtu_of("eth0")) == 9000


def mtu_of(device: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, 0x8921, struct.pack("16si", device.encode(), 0) + bytes(20))   # SIOCGIFMTU
    return int(struct.unpack_from("i", answer, 16)[0])


def test_down_twice_and_down_of_nothing(prefix: str) -> None:
    lab = Lab(prefix, second=True)
    lab.down()
    lab.up()
    assert len(remains(prefix)) == 6
    lab.down()
    assert remains(prefix) == []
    lab.down()


def test_down_ends_what_runs_inside_even_what_will_not(prefix: str) -> None:
    lab = Lab(prefix)
    lab.up()
    stubborn = lab.gateway.popen(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"],
                                 stdout=subprocess.PIPE)
    assert stubborn.stdout is not None
    with stubborn.stdout as said:
        assert said.readline() == b"ready\n"
    lab.down()
    assert stubborn.wait(5) == -signal.SIGKILL


UP = """
import sys
from nfqguard.lab.topology import Lab
from nfqguard.lab.postfix import Postfix
lab = Lab(sys.argv[1], second=True, offloads=False)
print("begin", flush=True)
lab.up()
print("up", flush=True)
if len(sys.argv) > 2:
    mail = Postfix(lab)
    mail.start()
    print(mail.pid(), flush=True)
    sys.stdin.read()
"""


def building(*argv: str) -> subprocess.Popen[str]:
    """A process that builds a lab, halted before it begins to."""
    process = subprocess.Popen([sys.executable, "-c", UP, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, cwd=Path(__file__).parents[1])
    assert process.stdout is not None and process.stdout.readline() == "begin\n"
    return process


def runs(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that its parent has not yet noticed has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_down_after_a_kill_in_the_middle_of_up(prefix: str) -> None:
    began = time.monotonic()
    process = building(prefix)
    process.communicate()
    whole = time.monotonic() - began
    lab = Lab(prefix, second=True, offloads=False)
    assert lab.is_up()
    lab.down()
    halves = 0
    for tenth in range(10):
        process = building(prefix)
        time.sleep(whole * tenth / 10)
        kill(process)
        halves += bool(remains(prefix)) and not lab.is_up()
        (lab.up if tenth % 2 else lab.down)()
        lab.down()
        assert remains(prefix) == []
    assert halves >= 2, "no kill came in the middle: the test has tried nothing"


def test_down_after_a_kill_ends_the_mail_server(prefix: str) -> None:
    process = building(prefix, "postfix")
    assert process.stdout is not None and process.stdout.readline() == "up\n"
    master = int(process.stdout.readline())
    kill(process)
    assert runs(master)
    Lab(prefix).down()
    assert not runs(master)


def test_up_and_down_over_a_half_built_lab(prefix: str) -> None:
    lab = Lab(prefix)
    lab.client.create()
    lab.server.create()
    lab.gateway.path.touch()        # a name without a namespace, as after a crash where /run outlives a reboot
    lab.up()
    assert lab.is_up()
    lab.lan.create()                # of a lab with a second server
    lab.down()
    assert remains(prefix) == []


def test_a_failing_up_leaves_nothing_and_says_why(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfqguard.lab.topology.IPV6_STEPS", "*filter\n-A NOWHERE -j ACCEPT\nCOMMIT\n")
    with pytest.raises(subprocess.CalledProcessError):
        Lab(prefix).up()
    assert remains(prefix) == []


def test_labs_stand_side_by_side(prefix: str) -> None:
    other = Lab(f"{prefix}o")
    with Lab(prefix) as lab:
        with other:
            assert lab.is_up() and other.is_up()
        assert lab.is_up() and not other.is_up()


@pytest.mark.parametrize("name", ["", "Lab", "../lab", "a" * 25, "1lab", "a b"])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(LabError):
        Lab(name)


@pytest.mark.parametrize("state", [True, False])
def test_offloads_are_set_on_every_link(prefix: str, state: bool) -> None:
    with Lab(prefix, offloads=state) as lab:
        links = ((lab.client, "eth0"), (lab.gateway, "outside"), (lab.gateway, "inside"), (lab.server, "eth0"))
        for host, device in links:
            shown = str(host.run(["ethtool", "-k", device]).stdout)
            for feature in ("tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload",
                            "generic-receive-offload"):
                assert f"{feature}: {'on' if state else 'off'}" in shown, (host.name, device, feature)


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_real_message_arrives(site: tuple[Lab, Postfix], family: str, tmp_path: Path) -> None:
    lab, mail = site
    message = f"From: <carol@outside.example>\nSubject: {family}\n\n" + "".join(
        f"{number} {hashlib.sha256(str(number).encode()).hexdigest()}\n" for number in range(2000)) + ".\n..\n.end\n"
    file = tmp_path / "message"
    file.write_text(message.removesuffix("\n"))
    before = len(mail.messages("bob"))
    swaks = roots.fetch("swaks")
    lab.client.run(swaks.argv(["swaks", "--server", lab.public_ipv4 if family == "ipv4" else lab.public_ipv6,
                               "--helo", "client.outside.example", "--from", "carol@outside.example",
                               "--to", "bob@inside.example", "--data", f"@{file}"]))
    stored = mail.await_messages(before + 1, "bob")[-1].read_bytes()
    assert stored.endswith(b"\n" + message.encode())


def reachable(host: Host, address: str, port: int = 25) -> bool:
    """Whether a connection comes about. Only the access list's answer and silence count as no."""
    with host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as connection:
        connection.settimeout(3)
        try:
            connection.connect((address, port))
        except TimeoutError:
            return False
        except OSError as error:
            assert error.errno in (errno.EHOSTUNREACH, errno.EACCES), error     # a refusal would come from a host
            return False
        return True


@contextlib.contextmanager
def listening(host: Host, port: int) -> Iterator[socket.socket]:
    with host.socket(socket.AF_INET6) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::", port))
        listener.listen()
        listener.settimeout(5)
        yield listener


def test_the_access_list_lets_in_mail_to_the_mail_server_alone(site: tuple[Lab, Postfix]) -> None:
    lab, _ = site
    assert reachable(lab.client, "172.22.1.110") and reachable(lab.client, "fd00:10::2")
    assert not reachable(lab.client, "172.22.1.111") and not reachable(lab.client, "fd00:10::5")
    assert reachable(lab.server, "10.10.10.5") and reachable(lab.gateway, "fd00:10::5")
    with listening(lab.server, 587), listening(lab.gateway, 2525):
        assert reachable(lab.gateway, "10.10.10.2", 587) and reachable(lab.server, "10.10.10.1", 2525)
        assert not reachable(lab.client, "172.22.1.110", 587) and not reachable(lab.client, "fd00:10::2", 587)
        assert not reachable(lab.client, "172.22.1.16", 2525) and not reachable(lab.client, "fd00:22::16", 2525)


def test_who_comes_from_inside_appears_under_the_static_address(site: tuple[Lab, Postfix]) -> None:
    lab, _ = site
    with listening(lab.client, 25) as listener:
        for host, public in ((lab.server, "172.22.1.110"), (lab.second_server, "172.22.1.111")):
            assert reachable(host, lab.client.ipv4)
            assert listener.accept()[1][0] == f"::ffff:{public}"


def test_the_recorder_sees_what_the_server_received(site: tuple[Lab, Postfix]) -> None:
    lab, _ = site
    with Recorder(lab.server) as recorder:
        with Dialogue(lab.client, lab.public_ipv4) as client:
            port = client.port
            client.reply()
            client.type(b"HELO client\r\n")
            client.reply()
            client.send(b"NOOP\r\nRSET\r\n")
            assert [client.reply()[:3], client.reply()[:3]] == [b"250", b"250"]
            client.ask(b"QUIT\r\n")
            client.read_to_end()
        seen = recorder.wait(port)
    assert bytes(seen.to_server.octets) == bytes(client.sent) == b"HELO client\r\nNOOP\r\nRSET\r\nQUIT\r\n"
    assert bytes(seen.to_client.octets) == bytes(client.received)
    assert seen.to_server.segments == len(b"HELO client\r\n") + 2


def test_postfix_stops_and_starts_again_and_keeps_its_mail(site: tuple[Lab, Postfix]) -> None:
    lab, mail = site
    mail.run(["sendmail", "-f", "root@inside.example", "postmaster@inside.example"], input="Subject: kept\n\n")
    mail.await_messages(1, "postmaster")
    pid = mail.pid()
    mail.stop()
    mail.stop()
    assert mail.pid() is None
    with pytest.raises(OSError, match="refused"), lab.gateway.socket() as connection:
        connection.connect((lab.server.ipv4, 25))
    mail.start()
    mail.start()
    assert mail.pid() not in (None, pid)
    assert len(mail.messages("postmaster")) == 1
