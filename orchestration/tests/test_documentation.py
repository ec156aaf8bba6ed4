import pytest

from gpt2_orchestration.demo.documentation import documents


@pytest.mark.long
def test_the_documentation_is_text_of_the_standard_library_and_enough():
    found = list(documents(3_000_000))
    names = [document.name for document in found]
    assert len(names) == len(set(names))
    assert sum(len(document.text.encode()) for document in found) >= 3_000_000
    argparse = next(document.text for document in found if document.name == "python/argparse")
    assert "class ArgumentParser(_AttributeHolder, _ActionsContainer)" in argparse
    assert "Object for parsing command line strings into Python objects." in argparse
    assert any(document.name.startswith("python/pydoc_data/topics/") for document in found)
    assert not any("/test/" in name for name in names)
