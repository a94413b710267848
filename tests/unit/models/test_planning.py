"""From two states of a folder to what has to be done."""

from dataclasses import replace
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.builders import ECHO_CONFIG, model_folder

from preheat.models.planning import Plan, Source, plan, source_of
from preheat.repository.configuration import InstanceGroup
from preheat.repository.stamps import FileStamp, stamp_folder

ONE, TWO = (InstanceGroup("KIND_AUTO", 1),), (InstanceGroup("KIND_AUTO", 2),)
SOURCE = Source(Path("m"), b"", ONE, (), ())


def changed(size: int) -> Source:
    return replace(SOURCE, files=(FileStamp("1/model", size, 0, 0),))


SOURCES = st.sampled_from([SOURCE, changed(1), changed(2), replace(SOURCE, instance_groups=TWO)])
BY_VERSION = st.dictionaries(st.integers(1, 4), SOURCES)


def test_only_what_has_changed_is_done() -> None:
    serving = {1: SOURCE, 2: SOURCE, 3: SOURCE, 4: SOURCE}
    wanted = {2: SOURCE, 3: changed(1), 4: replace(SOURCE, instance_groups=TWO), 5: SOURCE}
    assert plan(serving, wanted, {}) == Plan(load=(3, 5), resize=(4,))


def test_what_failed_is_tried_again_only_when_it_has_changed() -> None:
    assert plan({}, {1: SOURCE}, {1: SOURCE}) == Plan()
    assert plan({}, {1: changed(1)}, {1: SOURCE}) == Plan(load=(1,))


def test_other_files_with_another_number_of_instances_are_loaded() -> None:
    assert plan({1: SOURCE}, {1: replace(changed(1), instance_groups=TWO)}, {}) == Plan(load=(1,))


@given(BY_VERSION, BY_VERSION, BY_VERSION)
def test_once_a_plan_is_carried_out_there_is_nothing_to_do(
    serving: dict[int, Source], wanted: dict[int, Source], failed: dict[int, Source]
) -> None:
    steps = plan(serving, wanted, failed)
    done = {**serving, **{version: wanted[version] for version in (*steps.load, *steps.resize)}}
    assert plan(done, wanted, failed) == Plan()
    assert not set(steps.load) & set(steps.resize)


def test_a_source_is_the_same_whichever_versions_are_wanted_and_whatever_it_is_called(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, versions=(1, 2))
    before = source_of(folder, 1, stamp_folder(folder.path))
    (folder.path / "config.pbtxt").write_text(f'name: "m" {ECHO_CONFIG} # comment\nversion_policy {{ all {{ }} }}')
    again = model_folder(tmp_path / "again", config=(folder.path / "config.pbtxt").read_text(), versions=(1, 2))
    after = source_of(again, 1, stamp_folder(folder.path))
    assert after == replace(before, folder=again.path)
    more = model_folder(tmp_path / "more", config=f"{ECHO_CONFIG} instance_group {{ count: 2 }}")
    assert source_of(more, 1, None).configuration == before.configuration
    assert source_of(more, 1, None).instance_groups == TWO
