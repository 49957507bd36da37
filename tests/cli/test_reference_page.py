"""The key reference of the documentation is what classes and configurations say."""

from tests.cli.reference_page import FILE, configurations, page


def test_documentation_is_current():
    assert FILE.read_text(encoding="utf-8") == page(), "out of date, renew by: python -m tests.cli.reference_page"


def test_every_key_of_every_configuration_has_a_row():
    text = page()
    shared, *sections = text.split("\n## ")[1:]
    for configuration in configurations():
        kind = configuration.classes["module"]
        section = next(section for section in sections if f"`{kind}` in " in section)
        assert f"[{configuration.name}](../configs/{configuration.name}.yaml)" in section
        assert all(f"| `{key}` |" in section or f"| `{key}` |" in shared for key in configuration.rows)
    assert "| `module.weight_cdc` | float >= 0 | 1000.0 |" in text
