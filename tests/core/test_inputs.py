"""The readers of numbers, lists, paths and YAML: each text is read, or refused in the words of its field."""

from __future__ import annotations

import math
import random
import string
from pathlib import Path

import pytest
import yaml

from sousa_engine.core import config, grammar, inputs, sweep_spec
from sousa_engine.core.errors import ConfigError, DataError

READ = {
    "0.01": 0.01, "0,01": 0.01, "12,5": 12.5, "0,001": 0.001, "1,0": 1.0, "1.000": 1.0, ".5": 0.5, ",5": 0.5, "5.": 5.0,
    "1e-3": 1e-3, "1E3": 1000.0, "1,5e-3": 1.5e-3, "2e+2": 200.0, "010": 10.0, "007": 7.0, "00": 0.0, "-0": 0.0,
    " 2 ": 2.0, "\t2\n": 2.0, "\u00a02": 2.0, "+5": 5.0, "-5": -5.0, "\u22125": -5.0, "0e99999": 0.0,
    "0.00010089882250230275": 0.00010089882250230275, "1234,5": 1234.5, "1234,567": 1234.567,
}  # fmt: skip
GROUPED = [
    "1,000", "12,345", "1,000,000", "1,000.5", "1.000,5", "1.000.000", "1_000", "1 000", "1'000", "1’000",
    "1\u00a0000", "1\u202f000",
]  # fmt: skip
NOT_FINITE = ["nan", "NaN", ".nan", "inf", "-inf", "+Infinity", ".inf", "-.INF", "1e400", "-1e400", "9" * 5000]
NO_NUMBERS = [
    "", " ", "-", "+", ".", ",", "e", "e5", "1e", "1e-", "--1", "+-1", "1-", "5,", "1,2,3", "1.2.3", "1..2", "1,.2",
    "0x10", "0o10", "0b1", "1_0", "10%", "10 %", "5 s", "5s", "1/2", "1:30", "12:30:45", "1e3.5", "1e1,5", "²", "½",
    "٣", "１", "三", "five", "true", "yes", "on", "null", "~", "none", "{", "}", "[", "[0.1", "{a: 1}", "[1]", "(1)",
    "@", "%2", "!x", "&a", "*a", "#", "1 # c", "'1'", '"1"', "1\n2", "1 2", "\0", "\ud800", "\u202e1", "$1", "1$",
    "0.1.", "1e5e5", "1j", "∞", "—5", "1d3", "=1", "1;2", "a" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize(("text", "number"), READ.items())
def test_a_number_is_read_with_either_decimal_mark(text, number):
    assert inputs.number(text, "Rate") == number and math.copysign(1, inputs.number(text, "Rate") or 1) == (
        math.copysign(1, number or 1)
    )


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (GROUPED, "number without thousands separators, such as 1000"),
        (NOT_FINITE, "must be a finite number"),
        (NO_NUMBERS, "must be a (whole )?number"),
        (["1e-400", "-0,1e-999"], "is too close to 0"),
    ],
)
def test_what_is_no_number_is_refused_in_the_words_of_its_field(texts, said, whole):
    for text in texts:
        with pytest.raises(ConfigError, match=rf"^Alpha .*{said}.*\(you entered ") as error:
            inputs.number(text, "Alpha", whole=whole, field="lora.alpha")
        assert len(str(error.value)) < 300 and error.value.field == "lora.alpha"


def test_a_whole_number_is_never_rounded():
    whole = {"10": 10, "010": 10, "1e3": 1000, "2.0": 2, "2,0": 2, "9007199254740993": 9007199254740993, "-3": -3}
    assert {text: inputs.number(text, "Seed", whole=True) for text in whole} == whole
    for text in ("1.5", "1,5", "1e-3", "1.0000000000000000001", "0.5e0"):
        with pytest.raises(ConfigError, match="must be a whole number"):
            inputs.number(text, "Seed", whole=True)


def test_a_bound_is_named():
    with pytest.raises(ConfigError, match=r"^Trials must be at least 1 \(you entered '0'\)\.$"):
        inputs.number("0", "Trials", whole=True, low=1)
    with pytest.raises(ConfigError, match=r"^Trials must be at most 1,000 \(you entered '1001'\)\.$"):
        inputs.number("1001", "Trials", whole=True, high=1000)


def test_the_text_of_a_number_is_short_and_exact():
    assert [inputs.number_text(value) for value in (16.0, 0.002, 1e-05, 8, None)] == ["16", "0.002", "1e-05", "8", ""]
    dice = random.Random(0)
    for _ in range(500):
        value = dice.uniform(-1, 1) * 10.0 ** dice.randint(-300, 300)
        assert inputs.number(inputs.number_text(value), "x") == value


@pytest.mark.parametrize("field", [name for name, _ in config.fields() if config.takes_number(name)])
def test_every_field_of_numbers_reads_a_text_alike_through_each_door(field):
    """The command line, a file, a form and an axis; the doors agree for every text."""
    *parents, leaf = field.split(".")
    for text in [*READ, *GROUPED, *NOT_FINITE, *NO_NUMBERS]:
        nested = {parents[0]: {leaf: text}} if parents else {leaf: text}
        found = []
        for door in (
            lambda nested=nested: config.value_of(config.build(nested), field),
            lambda text=text: config.read(field, text),
            lambda text=text: config.value_of(config.build(grammar.parse([f"{field}={text}"])), field),
        ):
            try:
                found.append(door())
            except ConfigError as error:
                assert error.field == field and ("(you entered " in str(error)), (text, str(error))
                found.append("refused")
        assert found.count(found[0]) == 3, (text, found)


@pytest.mark.parametrize("value", [True, False, [1], {}, "1.5", float("nan"), float("inf"), 10**400])
def test_what_is_no_whole_number_in_a_file_is_a_sentence(value):
    with pytest.raises(ConfigError, match=r"^seed must be .*\(you entered "):
        config.build({"seed": value})


# Lists


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a, b", ["a", "b"]),
        ("a,,b,", ["a", "b"]),
        ("[a,b]", ["a", "b"]),
        ("{'q', 'v'}", ["q", "v"]),
        ('{"q", "v"}', ["q", "v"]),
        ("('a',)", ["a"]),
        ("(a, b)", ["a", "b"]),
        ("set(['a', 'b'])", ["a", "b"]),
        ("frozenset({'a'})", ["a"]),
        ("set()", []),
        ("[]", []),
        ("", []),
        ('"a,b",c', ["a,b", "c"]),
        ("“a”, “b”", ["a", "b"]),
        (r".*\d{1,2}\.(q|v)", [r".*\d{1,2}\.(q|v)"]),
        (r".*\d{1,2}\.(q|v),fc1", [r".*\d{1,2}\.(q|v)", "fc1"]),
        (r"{'.*\\d{1,2}', 'b'}", [r".*\d{1,2}", "b"]),
        ("(q|v)", ["(q|v)"]),
        ("(q|v),(k)", ["(q|v)", "(k)"]),
        ("[qk]_proj,[v]_proj", ["[qk]_proj", "[v]_proj"]),
        ("/home/o'brien/a,/b", ["/home/o'brien/a", "/b"]),
        ("a(1/x,/b", ["a(1/x", "/b"]),
        ("a]b,c", ["a]b", "c"]),
    ],
)
def test_a_list_is_read_in_any_brackets_and_only_cut_outside_them(text, items):
    assert inputs.listed(text) == items


def test_any_items_survive_being_listed():
    dice = random.Random(1)
    letters = string.ascii_letters + " ,;'\"\\[](){}:#&*!|>-\n\té“”"
    for _ in range(400):
        items = ["".join(dice.choices(letters, k=dice.randint(1, 8))).strip() or "x" for _ in range(dice.randint(0, 4))]
        assert inputs.listed(inputs.list_text(items)) == items


def test_numbers_between_commas_take_points_and_those_between_semicolons_either_mark():
    assert inputs.numbers("1e-3, 5e-3", "Rate") == [1e-3, 5e-3]
    assert inputs.numbers("0,01; 0.02", "Rate") == [0.01, 0.02]
    for text in ("0,01", "0,01,0,02", "1,000"):
        with pytest.raises(ConfigError, match=r"^Rate = .* is unclear: a comma separates values here"):
            inputs.numbers(text, "Rate")


@pytest.mark.parametrize(
    "text",
    [
        "{'query', 'key'}",
        '{"query", "key"}',
        "{query, key}",
        "{'query',\n 'key'}",
        "('query', 'key')",
        "Target modules {'query', 'key'} not found in the base model. Please check the target modules and try again.",
        "LoraConfig(r=8, target_modules=['query', 'key'], lora_alpha=16)",
        '{"peft_type": "LORA", "target_modules": ["query", "key"]}',
        "peft_target_modules: query, key",
        "target_modules:\n- query\n- key",
        '"query", "key"',
        "query;key".replace(";", "\n"),
    ],
)
def test_targets_are_read_as_peft_prints_and_takes_them(text):
    assert grammar.entries(text) == ["query", "key"]


@pytest.mark.parametrize("text", [r".*layers\.\d{1,2}\.attention\.(q_proj|v_proj)", r"(a|b)\.\d{1,2}", "[qk]_proj|v"])
def test_a_regular_expression_is_one_entry_through_every_door(text):
    assert grammar.entries(text) == [text] == grammar.entries([text])
    assert grammar.entries(grammar.parse([f"lora.targets={text}"])["lora"]["targets"]) == [text]
    assert sweep_spec.parse_axis(f"targets={text},core") in (
        ("targets", [text, "core"]),
        ("targets", [[text], "core"]),
    )


@pytest.mark.parametrize("text", [*NO_NUMBERS, *GROUPED, "[" * 5000, "'" * 999, "a: &x 1", "!!int 5", "- {a: [b]}"])
def test_reading_targets_never_ends_in_a_traceback(text):
    try:
        assert all(isinstance(entry, str) and entry for entry in grammar.entries(text))
    except ConfigError as error:
        assert len(str(error)) < 300


# Paths


def pasted(path: str) -> list[str]:
    return [
        path, f" {path} ", f"{path}\n", f"'{path}'", f'"{path}"', f"“{path}”", f" '{path}' ", f"file://{path}",
        f"file://localhost{path}", "file://" + path.replace(" ", "%20"), path.replace(" ", "\\ "),
        "\\".join(path.split("/")),
    ]  # fmt: skip


def test_a_pasted_path_is_found_however_it_was_copied(tmp_path):
    folder = tmp_path / "my drums"
    folder.mkdir()
    for text in pasted(str(folder)):
        assert inputs.typed_path(text) == folder, text


def test_a_name_that_exists_as_written_wins(tmp_path):
    for name in ("'quoted'", " blank ", "back\\slash", "file:"):
        (tmp_path / name).mkdir()
        (tmp_path / name.strip("' ")).mkdir(exist_ok=True)
        assert inputs.typed_path(tmp_path / name) == tmp_path / name


def test_a_path_that_does_not_exist_is_cleaned(tmp_path):
    for text in pasted(f"{tmp_path}/not there")[:-2]:
        assert inputs.typed_path(text) == tmp_path / "not there"


@pytest.mark.parametrize(
    "text", ["", " ", "''", "a\0b", "\ud800", "x" * 5000, "~nobody-of-this-name/x", "/" + "y" * 300]
)
def test_what_can_be_no_path_is_refused(text):
    with pytest.raises(DataError, match="cannot be opened: "):
        inputs.typed_path(text, DataError)


def test_reading_a_path_never_ends_in_a_traceback():
    for text in [*READ, *GROUPED, *NO_NUMBERS, "file://", "file://host/x", "\\", "C:\\x y", "~", "'", '"']:
        try:
            assert isinstance(inputs.typed_path(text, DataError), Path)
        except DataError as error:
            assert len(str(error)) < 300


# YAML


@pytest.mark.parametrize(
    ("text", "seed"),
    [("010", 10), ("1e1", 10), ("10", 10), ("'10'", 10), ("1:30", None), ("0x10", None), ("yes", None)],
)
def test_a_file_reads_numbers_as_the_command_line_does(tmp_path, text, seed):
    file = tmp_path / "run.yaml"
    file.write_text(f"seed: {text}\n")
    values = inputs.yaml_fields(file)
    if seed is None:
        with pytest.raises(ConfigError, match=r"^seed must be a whole number"):
            config.build(values)
    else:
        assert config.build(values).seed == seed == config.build(grammar.parse([f"seed={seed}"])).seed


NAMES = ["007", "1e3", "1:30", "0x10", "0o7", "yes", "no", "on", "off", "2024-01-01", "1_000", "1.50", "5", "0.5", "-0",
         "true", "True", "=", "<<", "1e5", ".inf", "y", "1.", "+1"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_in_a_file_is_the_text_that_is_written_there(tmp_path, name):
    (tmp_path / "run.yaml").write_text(f"name: {name}\ndata: {{dataset: {name}}}\n")
    made = config.build(inputs.yaml_fields(tmp_path / "run.yaml"))
    assert (made.name, made.data.dataset) == (name, name)


def test_what_pyyaml_writes_is_read_back():
    dice = random.Random(2)
    values = [*NAMES, 1, 0.1, 1e-05, -3, True, None, 1e22, 0.00010089882250230275]
    values += [dice.uniform(0, 1) * 10.0 ** dice.randint(-9, 9) for _ in range(50)]
    for value in values:
        found = inputs.load_yaml(yaml.safe_dump({"a": value}))["a"]
        assert found == value or inputs.number(found, "a") == value


@pytest.mark.parametrize(
    "text", ["a: !!int x", "a: !!bool maybe", "a: !!float y", "a: !foo 1", "? [a]\n: 1", "a: \ud800"]
)
def test_yaml_that_cannot_be_read_is_said(text):
    with pytest.raises(yaml.YAMLError):
        inputs.load_yaml(text)
