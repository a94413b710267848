"""A model's own modules: it finds them as it does in Triton, and nobody else finds them."""

import gc
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.backends.cases import make_source
from tests.backends.triton_models import ask, load, open_instance, opened, telling, write

from preheat.errors import InvalidArtifact
from preheat_backends.python import PythonBackend


def loaded_models() -> set[str]:
    """The modules of models that are loaded."""
    return {name for name in sys.modules if name.startswith("preheat_python_")}


@pytest.mark.parametrize(
    ("files", "imports", "expression"),
    [
        ({"helper.py": "NAME = 'it'"}, "import helper", "helper.NAME"),
        ({"helper.py": "NAME = 'it'"}, "from helper import NAME as name", "name"),
        ({"helper.py": "NAME = 'it'"}, "from .helper import NAME", "NAME"),
        ({"../helper.py": "NAME = 'it'"}, "import helper", "helper.NAME"),
        ({"lib/__init__.py": "", "lib/deep.py": "NAME = 'it'"}, "import lib.deep", "lib.deep.NAME"),
        ({"lib/__init__.py": "", "lib/deep.py": "NAME = 'it'"}, "import lib.deep as deep", "deep.NAME"),
        ({"lib/__init__.py": "", "lib/deep.py": "NAME = 'it'"}, "from lib import deep", "deep.NAME"),
        ({"lib/__init__.py": "from .deep import *", "lib/deep.py": "NAME = 'it'"}, "import lib", "lib.NAME"),
        ({"lib/deep.py": "NAME = 'it'"}, "from lib.deep import NAME", "NAME"),
        ({"one.py": "import two\nNAME = two.NAME", "two.py": "NAME = 'it'"}, "import one", "one.NAME"),
        (
            {"one.py": "def name():\n    import two\n    return two.NAME", "two.py": "NAME = 'it'"},
            "import one",
            "one.name()",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_lies_beside_a_model_is_imported_by_its_name(
    tmp_path: Path, files: dict[str, str], imports: str, expression: str
) -> None:
    with opened(write(tmp_path, telling(f"return {expression}", imports=imports), files)) as session:
        assert ask(session) == "it"


def test_two_models_have_each_their_own_helper_of_one_name(tmp_path: Path) -> None:
    source = telling("return helper.NAME", imports="import helper")
    folders = [write(tmp_path / name, source, {"helper.py": f"NAME = {name!r}"}) for name in ("one", "two")]
    with opened(folders[0]) as one, opened(folders[1]) as two:
        assert (ask(one), ask(two)) == ("one", "two")


def test_a_helper_imported_by_a_request_on_another_thread_is_the_model_s_own(tmp_path: Path) -> None:
    source = telling("import helper\nreturn helper.NAME")
    folders = [write(tmp_path / name, source, {"helper.py": f"NAME = {name!r}"}) for name in ("one", "two")]
    with opened(folders[0]) as one, opened(folders[1]) as two, ThreadPoolExecutor(2) as threads:
        assert list(threads.map(ask, (one, two))) == ["one", "two"]


def test_each_instance_has_modules_of_its_own(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        telling("helper.CALLS.append(1)\nreturn str(len(helper.CALLS))", imports="import helper"),
        {"helper.py": "CALLS = []"},
    )
    model = load(folder, instances=2)
    sessions = [open_instance(model, ordinal) for ordinal in range(2)]
    assert [ask(sessions[0]), ask(sessions[0]), ask(sessions[1])] == ["1", "2", "1"]
    for session in sessions:
        session.close()


def test_the_process_sees_nothing_of_a_model_s_modules(tmp_path: Path) -> None:
    path = list(sys.path)
    with opened(write(tmp_path, telling("return ''", imports="import helper"), {"helper.py": ""})):
        assert sys.path == path
        assert "helper" not in sys.modules
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("helper")


def test_the_standard_library_is_not_shadowed(tmp_path: Path) -> None:
    with opened(
        write(tmp_path, telling("return queue.Queue.__name__", imports="import queue"), {"queue.py": ""})
    ) as session:
        assert ask(session) == "Queue"


def test_a_folder_of_data_does_not_shadow_a_library_of_its_name(tmp_path: Path) -> None:
    folder = write(tmp_path, telling("return np.int64.__name__"), {"../numpy/data.txt": "1 2 3"})
    with opened(folder) as session:
        assert ask(session) == "int64"


def test_what_is_not_there_is_missing_by_the_name_it_was_imported_by(tmp_path: Path) -> None:
    folder = write(tmp_path, telling("return ''", imports="import nowhere_to_be_found"))
    expected = r"raised ModuleNotFoundError: No module named 'nowhere_to_be_found' \(model\.py, line 4\)"
    with pytest.raises(InvalidArtifact, match=expected):
        load(folder)


def test_libraries_and_helpers_find_the_interface_too(tmp_path: Path) -> None:
    helper = "import triton_python_backend_utils as pb_utils"
    source = telling("return str(helper.pb_utils is pb_utils)", imports="import helper")
    with opened(write(tmp_path, source, {"helper.py": helper})) as session:
        assert ask(session) == "True"
    interface = importlib.import_module("triton_python_backend_utils")
    assert interface.Tensor.__name__ == "Tensor"


def test_classes_of_a_model_can_be_looked_up(tmp_path: Path) -> None:
    """Dataclasses and pickle find a class by its module's name."""
    helper = """
        import dataclasses
        import pickle

        @dataclasses.dataclass
        class Point:
            x: "int"

        def travel(x):
            return pickle.loads(pickle.dumps(Point(x))).x
    """
    with opened(
        write(tmp_path, telling("return str(helper.travel(7))", imports="import helper"), {"helper.py": helper})
    ) as session:
        assert ask(session) == "7"


def test_nothing_is_written_beside_the_model_and_an_edit_within_the_same_second_counts(tmp_path: Path) -> None:
    source = telling("return helper.NAME", imports="import helper")
    for name in ("one", "two"):
        folder = write(tmp_path, source, {"helper.py": f"NAME = {name!r}"})
        with opened(folder) as session:
            assert ask(session) == name
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "helper.py", "model.py"]


def test_completing_a_configuration_leaves_no_module_behind(tmp_path: Path) -> None:
    folder = write(tmp_path, telling("return ''", imports="import helper"), {"helper.py": ""})
    before = loaded_models()
    PythonBackend().complete(make_source(folder))
    assert loaded_models() == before


def test_closing_a_session_forgets_its_modules(tmp_path: Path) -> None:
    before = loaded_models()
    with opened(write(tmp_path, telling("return ''", imports="import helper"), {"helper.py": ""})):
        assert len(loaded_models() - before) == 3  # the package, model and helper
    assert loaded_models() == before


def test_an_instance_that_cannot_be_opened_leaves_no_module_behind(tmp_path: Path) -> None:
    source = "class TritonPythonModel:\n    def initialize(self, args): 1 / 0\n    def execute(self, requests): ..."
    model = load(write(tmp_path, source))
    before = loaded_models()
    with pytest.raises(
        InvalidArtifact, match=r"initialize\(\) raised ZeroDivisionError: division by zero \(model\.py, line 2\)"
    ):
        open_instance(model)
    assert loaded_models() == before


def test_a_closed_session_s_model_and_modules_are_freed(tmp_path: Path) -> None:
    source = telling("helper.LIVING.add(self)\nhelper.LIVING.add(helper.Kept())\nreturn ''", imports="import helper")
    helper = "import weakref\nclass Kept: ...\nLIVING = weakref.WeakSet()\nkept = Kept()\nLIVING.add(kept)"
    with opened(write(tmp_path, source, {"helper.py": helper})) as session:
        ask(session)
        module = next(sys.modules[name] for name in loaded_models() if name.endswith(".helper"))
        living = module.LIVING
        gc.collect()
        assert len(living) == 2
    del module
    gc.collect()
    assert len(living) == 0


def test_an_artifact_may_have_a_name_that_is_no_module_s(tmp_path: Path) -> None:
    folder = write(tmp_path, telling("return helper.NAME", imports="import helper"), {"helper.py": "NAME = 'it'"})
    (folder / "1/model.py").rename(folder / "1/my-model.v2.py")
    with opened(folder, artifact_name="my-model.v2.py") as session:
        assert ask(session) == "it"
