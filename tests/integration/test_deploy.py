"""What deploys the server: it names files that are there, metrics that exist and times that fit together."""

import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.rehearse import read_command, read_copy, read_instructions
from tests.e2e.gatekeeper import Gatekeeper
from tests.e2e.scrape import scrape
from tests.e2e.server_process import LIMIT_S, METRICS_PORT, ServerProcess, echo_config, write_model

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
INSTRUCTIONS = read_instructions((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
COPIES = [read_copy(each.value) for each in INSTRUCTIONS if each.name == "COPY"]
STEPS = [each.value for each in INSTRUCTIONS if each.name == "RUN"]
PROMTOOL = shutil.which("promtool")
# What the last answers have after the limits on stopping.
FLUSH_S = 5


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def expressions() -> list[str]:
    return [rule["expr"] for group in load("rules.yml")["groups"] for rule in group["rules"]]


def check_health(server: ServerProcess) -> tuple[int, str]:
    """The exit code of the health check, and what it says after the address."""
    command = [sys.executable, str(DEPLOY / "healthcheck.py"), "--address", server.grpc_address]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert result.stderr == ""
    return result.returncode, result.stdout.strip().removeprefix(f"{server.grpc_address}: ")


def test_the_image_is_made_of_files_that_are_there_and_not_ignored() -> None:
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignore
    sources = {source for stage, sources, _ in COPIES if stage is None for source in sources}
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == sources
    assert all((ROOT / source).exists() for source in sources)


def test_the_image_has_torch_from_an_index_of_cpu_builds_before_anything_asks_for_it() -> None:
    index = next(each.value for each in INSTRUCTIONS if each.name == "ARG" and each.value.startswith("TORCH_INDEX"))
    assert index.endswith("/whl/cpu")
    installs = [step for step in STEPS if "pip install" in step]
    assert re.search(r"--no-deps --index-url \$\{TORCH_INDEX\} torch$", installs[0])
    assert all("--constraint constraints.txt" in step for step in installs)


def test_the_image_has_every_package_that_it_names_at_a_known_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    (wanted,) = re.findall(r"preheat-\*\.whl\)\[(\w+)\]", "\n".join(STEPS))
    bundled = [requirement for name in re.findall(r"[\w-]+", extras[wanted][0])[1:] for requirement in extras[name]]
    names = {canonical(re.match(r"[\w.-]+", each)[0]) for each in (*project["dependencies"], *bundled)}  # type: ignore[index]
    names -= {"preheat"}  # an extra that needs another names the project itself
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert {"grpcio", "torch", "onnxruntime"} <= names <= {canonical(pin.partition("==")[0]) for pin in pins}


def test_the_image_serves_as_nobody_in_particular_and_checks_its_health() -> None:
    user = [each.value for each in INSTRUCTIONS if each.name == "USER"][-1]
    assert int(user.partition(":")[0]) > 0
    targets = {target for _, _, target in COPIES}
    assert read_command(INSTRUCTIONS, "HEALTHCHECK")[1] in targets
    assert read_command(INSTRUCTIONS, "ENTRYPOINT") == ["preheat", "serve"]


def test_an_instruction_that_cannot_be_rehearsed_is_refused() -> None:
    with pytest.raises(ValueError, match="ONBUILD"):
        read_instructions("FROM a\nONBUILD RUN true\n")


def test_instructions_are_read_over_comments_and_continued_lines() -> None:
    instructions = read_instructions('# about\nFROM a AS b\n\nRUN one && \\\n    two\nCMD ["x", "y"]\n')
    assert [(each.name, each.value) for each in instructions[:2]] == [("FROM", "a AS b"), ("RUN", "one && two")]
    assert read_command(instructions, "CMD") == ["x", "y"]


def test_the_health_check_tells_loading_from_serving_from_leaving(tmp_path: Path) -> None:
    with Gatekeeper(shut=True) as gatekeeper:
        write_model(tmp_path, "gated", gatekeeper.config())
        options = ["--lame-duck-seconds", str(LIMIT_S)]
        with ServerProcess(tmp_path, options=options, until=METRICS_PORT) as server:
            assert check_health(server) == (1, "NOT_SERVING")
            gatekeeper.open()
            server.wait_for_log(" ready: 1 model")
            assert check_health(server) == (0, "SERVING")
            server.send_signal(signal.SIGTERM)
            server.wait_for_log("not ready, serving for another")
            assert check_health(server) == (1, "NOT_SERVING")
            server.kill()
            code, text = check_health(server)
            assert (code, text.partition(":")[0]) == (1, "UNAVAILABLE")


def test_compose_mounts_files_that_are_there_and_waits_for_the_server_to_stop() -> None:
    services = load("compose.yaml")["services"]
    server, prometheus = services["preheat"], services["prometheus"]
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).is_file()
    assert (DEPLOY / "../model_repo").is_dir()
    assert all((DEPLOY / volume.partition(":")[0]).is_file() for volume in prometheus["volumes"])
    environment = server["environment"]
    stopping_s = environment["PREHEAT_LAME_DUCK_SECONDS"] + environment["PREHEAT_EXIT_TIMEOUT_SECONDS"] + FLUSH_S
    assert seconds(server["stop_grace_period"]) > stopping_s


def test_prometheus_scrapes_the_port_that_the_image_exposes() -> None:
    configuration = load("prometheus.yml")
    (job,) = configuration["scrape_configs"]
    ((target,),) = [each["targets"] for each in job["static_configs"]]
    exposed = next(each.value for each in INSTRUCTIONS if each.name == "EXPOSE").split()
    name, _, port = target.partition(":")
    assert name in load("compose.yaml")["services"]
    assert port in exposed
    assert all((DEPLOY / name).is_file() for name in configuration["rule_files"])


def test_the_rules_ask_for_metrics_that_the_server_has(tmp_path: Path) -> None:
    write_model(tmp_path, "echo", echo_config())
    with ServerProcess(tmp_path) as server:
        found = {sample.name for sample in scrape(server).samples}
    recorded = {rule["record"] for group in load("rules.yml")["groups"] for rule in group["rules"] if "record" in rule}
    asked = set(re.findall(r"\b(?:nv_|preheat[_:])[\w:]+", "\n".join(expressions())))
    assert asked
    assert asked <= found | recorded


@pytest.mark.skipif(PROMTOOL is None, reason="needs promtool, which comes with Prometheus")
@pytest.mark.parametrize("command", ["check config deploy/prometheus.yml", "test rules deploy/rules_test.yml"])
def test_prometheus_takes_the_configuration_and_its_alarms_go_off_when_they_should(command: str) -> None:
    result = subprocess.run(
        [str(PROMTOOL), *command.split()], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_pod_in_the_documentation_has_time_to_stop_and_is_not_killed_while_it_loads() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (DEPLOY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    pod = yaml.safe_load(block)["spec"]
    (container,) = pod["containers"]
    variables = {each["name"]: int(each["value"]) for each in container["env"]}
    stopping_s = variables["PREHEAT_LAME_DUCK_SECONDS"] + variables["PREHEAT_EXIT_TIMEOUT_SECONDS"] + FLUSH_S
    assert pod["terminationGracePeriodSeconds"] > stopping_s
    assert "grpc" in container["readinessProbe"]
    assert "grpc" not in container["livenessProbe"]
