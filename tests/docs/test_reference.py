"""Generated pages: every key of every command with its comment, every field, metric and data set; and the navigation."""

import dataclasses
import re

import pytest
import yaml
from fact_tables import attributes_of, catalogue, fields, gpu_queue, metrics
from hydra import compose, initialize_config_dir
from markdown_text import cell, code
from omegaconf import DictConfig, OmegaConf, open_dict
from settings_pages import CONF, Key, command_page, defaults_of, group_page, groups, keys_of, prose

from bdbnet.__main__ import COMMANDS
from bdbnet.config import flatten
from bdbnet.datasets import FACTS
from bdbnet.results import METRICS, Protocol, Result
from documented import ROOT


def composed(command: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command)
    return config


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_a_command_is_on_its_page(command):
    page = command_page(command)
    assert page.startswith(f"# bdbnet {command}\n")
    assert "$CONFIG" not in page
    assert f"python -m bdbnet.{command}" in page
    config = composed(command)
    with open_dict(config):
        named = {key for key, _ in flatten(OmegaConf.to_container(config, resolve=False))}
    on_page = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    missing = {key for key in named if not any(key == known or key.startswith(f"{known}.") for known in on_page)}
    assert not missing


@pytest.mark.parametrize("group", groups())
def test_every_choice_of_a_group_is_on_its_page(group):
    page = group_page(group)
    for file in (CONF / group).glob("*.yaml"):
        assert f"\n## {group}={file.stem}\n" in page
    assert any(group in defaults_of(command) for command in COMMANDS)


def test_values_and_comments_are_those_of_the_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "# A file.\n"
        "defaults:\n  - _self_\n"
        "size: [1, 2]          # height,\n"
        "                      # and width\n"
        "# of the next\n"
        'name: "a # b"         # no comment inside\n'
        "group:                # of keys\n"
        "  inner: ${name}\n"
        "  empty: {}           # none\n"
        "hydra:\n  run: x\n"
    )
    assert keys_of(file) == [
        Key("size", "[1, 2]", "height, and width"),
        Key("name", '"a # b"', "no comment inside"),
        Key("group.inner", "${name}", ""),
        Key("group.empty", "{}", "none"),
    ]


def test_the_comment_at_the_top_of_a_file_is_text_with_examples():
    lines = ["A loss.", "rate: of its centres,", "  or none", "  python -m bdbnet.train loss=x", "More."]
    assert prose(lines) == "A loss.\n\n`rate`: of its centres,\nor none\n\n    python -m bdbnet.train loss=x\n\nMore."


def test_text_means_itself_in_a_table():
    assert cell("a_b | <c> `d_e`") == r"a\_b \| \<c\> `d_e`"
    assert (code("a|b"), code(""), code("a`b")) == (r"`a\|b`", "", "``a`b``")


@pytest.mark.parametrize("record", [Result, Protocol])
def test_every_field_of_a_record_is_described(record):
    assert attributes_of(record).keys() == {field.name for field in dataclasses.fields(record)}
    table = fields(record)
    assert table.count("\n| `") == len(dataclasses.fields(record))
    assert "Annotated" not in table


def test_every_metric_and_data_set_is_listed():
    assert all(f"| `{name}` |" in metrics() for name in METRICS)
    assert re.findall(r"^### (\w+)$", catalogue(), re.MULTILINE) == list(FACTS)
    assert "15,913" in catalogue()


def test_what_a_gpu_has_not_shown_is_said_so():
    listed = (
        "# Queue\n\n## Speed\n\n| what | command | figure | device |\n|---|---|---|---|\n"
        "| a step | `a \\| b` | 43 ms | H100 |\n| many | `c` | unmeasured; it ended with nan | |\n\n"
        "## Right\n\n| what | command | outcome |\n|---|---|---|\n| equal | `d` | passed, H100 |\n"
    )
    assert gpu_queue(listed) == (
        "2 of 3 have been measured.\n\n"
        "## Speed\n\n| what | figure |\n| --- | --- |\n| a step | 43 ms; H100 |\n| many | **not yet**; it ended with nan |\n\n"
        "## Right\n\n| what | figure |\n| --- | --- |\n| equal | passed, H100 |\n"
    )
    assert "training step against forward + backward" in gpu_queue()
    assert "| unmeasured" not in gpu_queue()


def test_the_navigation_has_every_page_once():
    text = (ROOT / "mkdocs.yml").read_text()
    nav = re.findall(r"[\w./-]+\.md\b", yaml.dump(yaml.safe_load(text)["nav"]))
    assert len(nav) == len(set(nav))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    made = {f"reference/commands/{command}.md" for command in COMMANDS} | {
        f"reference/groups/{group}.md" for group in groups()
    }
    assert written | made == {page for page in nav if not page.startswith("repository/")}
    for page in nav:
        assert not page.startswith("repository/") or (ROOT / page.removeprefix("repository/")).is_file()


def test_arguments_that_are_described_together_have_a_row_each():
    pytest.importorskip("griffe")
    from joint_arguments import with_separate_entries

    text = "Text, with a, b: here.\n\nArgs:\n    a, b, c: all\n        of them.\n    d: one.\n"
    assert with_separate_entries(text) == (
        "Text, with a, b: here.\n\nArgs:\n    a: all\n        of them.\n    b: see `a`.\n    c: see `a`.\n    d: one.\n"
    )
