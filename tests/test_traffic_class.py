"""Traffic classes: what may be written, every mistake with its key path and remedy, and which can never be hit."""
from __future__ import annotations

from ipaddress import ip_network

import pytest

from nfqguard.policy.compile import ClassSpec, compile_classes
from nfqguard.policy.load import ConfigError, load

BASE = 'policy = "ios-smtp"\n[network]\ninside = ["10.0.0.0/8", "2001:db8::/32"]\n'


PORTS = BASE + "[deployment]\nports = [25, 587]\n"


@pytest.fixture
def write(tmp_path):
    def _write(*classes: str, base: str = BASE):
        path = tmp_path / "c.toml"
        path.write_text(base + "".join("[[classes]]\n" + "\n".join(text.split("; ")) + "\n" for text in classes))
        return path
    return _write


def problems(path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return [str(problem).partition("c.toml: ")[2] for problem in caught.value.problems]


def warnings(path) -> list[str]:
    return [str(warning).partition("c.toml: ")[2] for warning in load(path).warnings]


def test_a_class_has_all_that_is_written(write):
    configuration = load(write(
        'name = "esa"; clients = ["192.0.2.0/24", "2001:db8:1::/48"]; servers = "10.1.2.3"; ports = [25]; '
        'in-interfaces = "eth0"; out-interfaces = ["eth1", "wg0"]; direction = "inbound"; policy = "modern"',
        'name = "none"; exempt = true'))
    esa, none = configuration.classes
    assert esa.clients == (ip_network("192.0.2.0/24"), ip_network("2001:db8:1::/48"))
    assert esa.servers == (ip_network("10.1.2.3/32"),)
    assert (esa.ports, esa.in_interfaces, esa.out_interfaces) == ((25,), ("eth0",), ("eth1", "wg0"))
    assert (esa.direction, esa.policy, esa.exempt) == ("inbound", "modern", False)
    assert (none.policy, none.exempt) == (None, True)
    assert configuration.network.inside == (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))
    assert sorted(configuration.policies) == sorted(configuration.policies_in_use) == ["ios-smtp", "modern"]


def test_no_class_is_needed(write):
    configuration = load(write(base=""))
    assert configuration.classes == () and configuration.network.inside == ()


MISTAKES = [
    ('name = "x"', 'policy: it is not said what becomes of this class: write policy = "..." or exempt = true'),
    ('name = "x"; exempt = true; policy = "asa"',
     "exempt: a class is exempt or has a policy, not both: keep one of them"),
    ('name = "x"; policy = "modren"', "policy: there is no policy or preset 'modren': did you mean 'modern'?"),
    ('name = "first"; exempt = true', "name: there is a class 'first' already: give each class a name of its own"),
    ('name = "a b"; exempt = true', "name: 'a b' cannot be a name: use 1 to 31 letters, digits and _ . - (not first)"),
    ('name = "x"; exmpt = true', "exmpt: there is no such key: did you mean 'exempt'?"),
    ('name = "x"; exempt = true; direction = "in"', "direction: 'in' is not known: give 'inbound' or 'outbound'"),
    ('name = "x"; exempt = true; clients = ["10.1.2.3/8"]',
     "clients[0]: '10.1.2.3/8' is not what is needed: give a network such as 192.0.2.0/24 or 2001:db8::/32, without "
     "host bits"),
    ('name = "x"; exempt = true; ports = [0]', "ports[0]: 0 is too small: give at least 1"),
    ('name = "x"; exempt = true; in-interfaces = ["an-interface-too-long"]',
     "in-interfaces[0]: 'an-interface-too-long' does not fit: it has to match"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_each_mistake_has_its_key_path_and_remedy(write, text, expected):
    (problem,) = problems(write('name = "first"; clients = ["192.0.2.1"]; exempt = true', text))
    assert problem.startswith(f"classes[1].{expected}")


def test_a_direction_needs_an_inside(write):
    (problem,) = problems(write('name = "x"; exempt = true; direction = "inbound"', base=""))
    assert problem == ('classes[0].direction: it is not said which networks are inside: write [network] and inside = '
                       '["192.0.2.0/24"]')


def test_a_network_has_one_key(write):
    (problem,) = problems(write(base="[network]\ninsid = []\n"))
    assert problem == "network.insid: there is no such key: did you mean 'inside'?"


def test_all_mistakes_at_once(write):
    found = problems(write('name = "a"; exmpt = true', 'name = "b"', 'name = "b"; policy = "nobody"'))
    assert [problem.split(": ")[0] for problem in found] == [
        "classes[0].exmpt", "classes[2].policy", "classes[1].policy", "classes[2].name"]


@pytest.mark.parametrize(("first", "second", "hit"), [
    ("", 'clients = ["192.0.2.1"]', False),
    ('clients = ["192.0.2.0/24"]', 'clients = ["192.0.2.1", "192.0.2.128/25"]', False),
    ('clients = ["192.0.2.0/24"]', 'clients = ["192.0.2.1", "192.0.3.1"]', True),
    ('clients = ["192.0.2.0/24"]', "", True),
    ('clients = ["0.0.0.0/0"]', 'clients = ["2001:db8::1"]', True),
    ('clients = ["192.0.2.0/24"]', 'servers = ["192.0.2.0/24"]', True),
    ('servers = ["2001:db8::/32"]', 'servers = ["2001:db8:1::/48"]; clients = ["2001:db8:2::/48"]', False),
    ("ports = [25, 587]", "ports = [587]", False),
    ("ports = [25]", "ports = [25, 587]", True),
    ('in-interfaces = ["a"]', 'in-interfaces = ["a"]; out-interfaces = ["b"]', False),
    ('in-interfaces = ["a"]', 'out-interfaces = ["a"]', True),
    ('direction = "inbound"', 'direction = "inbound"; ports = [25]', False),
    ('direction = "inbound"', 'direction = "outbound"', True),
    ('direction = "inbound"', "", True),
])
def test_a_class_that_an_earlier_one_covers_is_warned_of(write, first, second, hit):
    path = write(f'name = "a"; exempt = true; {first}'.rstrip("; "),
                 f'name = "b"; policy = "ios-smtp"; {second}'.rstrip("; "), base=PORTS)
    assert warnings(path) == ([] if hit else [
        "classes[1]: no connection ever belongs to this class: the class 'a' before it takes all of them: put it "
        "first, or take it out"])


def test_smtp_and_esmtp_for_the_same_connections_is_a_mistake(write):
    first = 'name = "a"; policy = "asa"; ports = [25]; clients = ["192.0.2.0/25", "192.0.2.128/25", "192.0.2.7"]'
    second = 'name = "b"; policy = "ios-smtp"; ports = [25]; clients = ["192.0.2.0/25", "192.0.2.128/25"]'
    assert problems(write(first, second)) == [
        "classes[1].policy: SMTP and ESMTP inspection cannot be asked for at once: class 'a' asks for esmtp, and 'b' "
        "for smtp, of the same connections: keep one of them"]
    assert len(warnings(write(first, second.replace("ios-smtp", "ios-esmtp")))) > 0
    assert load(write(first, second.replace("[25]", "[26]"))).classes[1].policy == "ios-smtp"


INSIDE = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))


@pytest.mark.parametrize(("text", "expected"), [
    ('exempt = true; ports = [25]', ClassSpec("a", ports=(25,))),
    ('policy = "asa"; clients = ["192.0.2.0/24"]; in-interfaces = "eth0"; out-interfaces = "eth1"',
     ClassSpec("a", clients=(ip_network("192.0.2.0/24"),), in_interfaces=("eth0",), out_interfaces=("eth1",),
               policy="asa")),
    ('exempt = true; direction = "outbound"; servers = ["198.51.100.1"]',
     ClassSpec("a", servers=(ip_network("198.51.100.1/32"),), direction="outbound", inside=INSIDE)),
])
def test_classes_are_flat_for_the_engine(write, text, expected):
    configuration = load(write(f'name = "a"; {text}'))
    assert compile_classes(configuration.classes, configuration.network) == (expected,)


@pytest.mark.parametrize(("direction", "end"), [("inbound", "server"), ("outbound", "client")])
def test_a_class_whose_ends_are_not_inside_is_warned_of(write, direction, end):
    path = write(f'name = "a"; exempt = true; direction = "{direction}"; {end}s = ["192.0.2.1"]')
    assert warnings(path) == [
        f"classes[0].{end}s: none of these {end}s is inside, so no {direction} connection belongs to this class: "
        "correct it, or inside of [network], or take the class out"]


def test_a_class_of_ports_that_are_not_diverted_is_warned_of(write):
    path = write('name = "a"; ports = [587]; exempt = true', 'name = "b"; ports = [25, 587]; exempt = true')
    assert warnings(path) == [
        "classes[0].ports: none of these ports is brought to us, so no connection belongs to this class: add them to "
        "ports of [deployment], or take the class out"]
