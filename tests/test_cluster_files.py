"""The cluster files, held without a cloud to Ray's own schema and to what the schema does not look at: cost, ports, secrets, versions.

Ray's schema lets everything under `node_config` and any unknown field of `provider` pass (`specs/ray.md` section 1.4).
"""

import copy
import fnmatch
import ipaddress
import json
import re
import shlex
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LAUNCHED = ("cluster.yaml", "docs/cluster/onprem.yaml")
FILES = (*LAUNCHED, "docs/cluster/kuberay.yaml")
COPIED = {"~/raydd": ".", "~/.ray/auth_token": "~/.ray/auth_token"}
Node = dict[str, Any]


def read(name: str) -> list[Any]:
    return list(yaml.safe_load_all((ROOT / name).read_text()))


def cluster(name: str) -> dict[str, Any]:
    (found,) = read(name)
    return found


@pytest.fixture
def aws() -> dict[str, Any]:
    return cluster("cluster.yaml")


@pytest.fixture
def node_types(aws: dict[str, Any]) -> dict[str, Node]:
    return aws["available_node_types"]


@pytest.fixture
def workers(aws: dict[str, Any], node_types: dict[str, Node]) -> dict[str, Node]:
    return {name: node for name, node in node_types.items() if name != aws["head_node_type"]}


@pytest.fixture
def kubernetes() -> dict[str, Any]:
    return {document["kind"]: document for document in read("docs/cluster/kuberay.yaml")}


def pod_groups(kubernetes: dict[str, Any]) -> list[dict[str, Any]]:
    spec = kubernetes["RayCluster"]["spec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def containers(kubernetes: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for group in pod_groups(kubernetes) for container in group["template"]["spec"]["containers"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().split()
    return {name.lower(): number for name, number in (line.split("==") for line in lines)}


# The schema.


@pytest.mark.parametrize("name", LAUNCHED)
def test_rays_launcher_accepts_it(name: str) -> None:
    import jsonschema
    import ray
    from ray.autoscaler._private.util import prepare_config, validate_config

    content = cluster(name)
    jsonschema.validate(content, json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text()))
    validate_config(prepare_config(copy.deepcopy(content)))


def test_the_launcher_refuses_what_is_misspelt(aws: dict[str, Any]) -> None:
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    aws["available_node_types"]["head"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(aws))


def test_what_the_schema_lets_pass_is_spelt_right(aws: dict[str, Any], node_types: dict[str, Node]) -> None:
    known = {"InstanceType", "ImageId", "SecurityGroupIds", "InstanceMarketOptions", "MetadataOptions", "BlockDeviceMappings"}
    assert set(aws["provider"]) == {"type", "region", "cache_stopped_nodes"}
    for node in node_types.values():
        assert set(node["node_config"]) <= known
        assert re.fullmatch(r"[a-z]+[0-9][a-z0-9]*\.[0-9]*x?large", node["node_config"]["InstanceType"])


# Costs.


def test_the_head_is_on_demand_and_holds_the_drivers(aws: dict[str, Any], node_types: dict[str, Node]) -> None:
    head = node_types[aws["head_node_type"]]
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["driver"] >= 1
    assert (head["min_workers"], head["max_workers"]) == (0, 0)


def test_workers_are_spot_machines_with_a_gpu_and_without_drivers(workers: dict[str, Node]) -> None:
    assert workers
    for node in workers.values():
        assert node["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert node["labels"]["ray.io/market-type"] == "spot"
        assert node["resources"]["GPU"] >= 1
        assert "driver" not in node["resources"]


def test_nothing_starts_unasked_and_nothing_without_end(aws: dict[str, Any], workers: dict[str, Node]) -> None:
    assert 1 <= aws["max_workers"] <= 8
    assert 1 <= aws["idle_timeout_minutes"] <= 15
    for node in workers.values():
        assert node["min_workers"] == 0 < node["max_workers"] <= aws["max_workers"]
        assert node["idle_timeout_s"] == 60 * aws["idle_timeout_minutes"]


def test_disks_end_with_their_machines_and_are_encrypted(aws: dict[str, Any], node_types: dict[str, Node]) -> None:
    assert aws["provider"]["cache_stopped_nodes"] is False
    for node in node_types.values():
        for disk in node["node_config"]["BlockDeviceMappings"]:
            assert disk["Ebs"]["DeleteOnTermination"] is True and disk["Ebs"]["Encrypted"] is True


def test_machines_at_hand_are_all_in_use() -> None:
    content = cluster("docs/cluster/onprem.yaml")
    assert content["max_workers"] == len(content["provider"]["worker_ips"])


# Who may come in.


def test_ssh_comes_from_the_users_own_group_alone(aws: dict[str, Any], node_types: dict[str, Node]) -> None:
    """A node type without a group of its own gets one of Ray's making, open to ssh from everywhere; so do rules under `provider`."""
    assert "security_group" not in aws["provider"]
    for node in node_types.values():
        assert node["node_config"]["SecurityGroupIds"]
        assert not {"NetworkInterfaces", "LaunchTemplate"} & set(node["node_config"])
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_open_to_everybody(name: str) -> None:
    text = (ROOT / name).read_text()
    for opening in ("0.0.0.0", "::/0", "LoadBalancer", "NodePort", "Ingress\n", "hostNetwork", "hostPort", "RAY_AUTH_MODE=disabled"):
        assert opening not in text, opening


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_starts_with_token_and_the_dashboard_on_the_loopback(name: str) -> None:
    content = cluster(name)
    heads, others = ([line for line in content[f"{kind}_start_ray_commands"] if "ray start" in line] for kind in ("head", "worker"))
    assert len(heads) == len(others) == 1
    for line in heads + others:
        assert "RAY_AUTH_MODE=token ray start" in re.sub(r"(RAY_AUTH_MODE=token) (RAY_\w+=\w+ )*", r"\1 ", line)
    assert "--dashboard-host=127.0.0.1" in heads[0]
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in heads[0]
    assert "$RAY_HEAD_IP" in others[0]


def test_commands_on_the_cluster_authenticate_too(aws: dict[str, Any]) -> None:
    """What `ray exec` runs joins by host:port, where Ray does not turn authentication on by itself."""
    assert "--env RAY_AUTH_MODE=token" in aws["docker"]["run_options"]
    assert any("RAY_AUTH_MODE=token" in line and "activate" in line for line in cluster("docs/cluster/onprem.yaml")["setup_commands"])


def test_lost_machines_are_noticed_soon(kubernetes: dict[str, Any]) -> None:
    settings = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "4"}
    for name in LAUNCHED:
        (line,) = (line for line in cluster(name)["head_start_ray_commands"] if "ray start" in line)
        assert all(f"{key}={value}" in line for key, value in settings.items())
    assert settings.items() <= {entry["name"]: entry["value"] for entry in containers(kubernetes)[0]["env"]}.items()


# Secrets.


@pytest.mark.parametrize("name", FILES)
def test_no_secret_is_written_down(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|PRIVATE KEY|\b[0-9a-f]{32,}\b|(?i:secret_access_key|password)|RAY_AUTH_TOKEN", text)


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_token_is_the_only_secret_that_is_copied(name: str) -> None:
    content = cluster(name)
    assert content["file_mounts"] == COPIED
    assert content["rsync_filter"] == [".gitignore"]
    for secret in (".env", ".env.local", ".aws/credentials", ".ssh/id_rsa", ".kube/config", ".netrc", ".git/config"):
        assert any(fnmatch.fnmatch(f"/{secret}", pattern) for pattern in content["rsync_exclude"]), secret


@pytest.mark.parametrize("name", LAUNCHED)
@pytest.mark.parametrize("needed", ["auth_token", "id_ed25519", "ray-autoscaler_us-west-2.pem", "constraints.txt", "raydd/run.py"])
def test_nothing_that_is_needed_is_left_out(name: str, needed: str) -> None:
    """The patterns hold for the key and the settings that Ray copies to the head, too."""
    assert not any(fnmatch.fnmatch(f"/{needed}", pattern) for pattern in cluster(name)["rsync_exclude"])


# What is to be filled in names nothing that exists.


def test_unfilled_nothing_starts_on_aws(aws: dict[str, Any], node_types: dict[str, Node]) -> None:
    for node in node_types.values():
        for group in node["node_config"]["SecurityGroupIds"]:
            assert not re.fullmatch(r"sg-[0-9a-f]+", group)
        assert not re.fullmatch(r"ami-[0-9a-f]+|latest_dlami|", node["node_config"]["ImageId"])
    assert aws["metadata"]["mount_shared"] in aws["initialization_commands"]
    assert not re.search(r"fs-[0-9a-f]+\.", aws["metadata"]["mount_shared"])
    assert f".efs.{aws['provider']['region']}." in aws["metadata"]["mount_shared"]


def test_unfilled_addresses_belong_to_nobody(kubernetes: dict[str, Any]) -> None:
    provider = cluster("docs/cluster/onprem.yaml")["provider"]
    for address in (provider["head_ip"], *provider["worker_ips"]):
        assert ipaddress.ip_address(address) in ipaddress.ip_network("192.0.2.0/24")  # RFC 5737
    assert {container["image"].split("/")[0] for container in containers(kubernetes)} == {"registry.invalid"}  # RFC 2606


# Versions.


def test_the_pins_are_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in map(Requirement, project["dependencies"]):
        pinned = pins().get(requirement.name.lower())
        assert pinned is None or requirement.specifier.contains(pinned), (requirement, pinned)
    assert {"ray", "torch", "torchvision", "numpy", "pyarrow", "safetensors"} <= set(pins())


@pytest.mark.parametrize("name", LAUNCHED)
def test_what_is_installed_is_pinned(name: str) -> None:
    content = cluster(name)
    installs = [line for line in content["setup_commands"] + content.get("head_setup_commands", []) if "pip install" in line]
    assert any("--editable ~/raydd" in line for line in installs)
    assert all("--constraint ~/raydd/constraints.txt" in line for line in installs)


def test_every_machine_has_the_same_ray_and_a_python_that_will_do(aws: dict[str, Any], kubernetes: dict[str, Any]) -> None:
    assert pins()["ray"] == version("ray") == kubernetes["RayCluster"]["spec"]["rayVersion"]
    for kind in ("head_image", "worker_image"):
        assert re.fullmatch(rf"rayproject/ray:{re.escape(version('ray'))}-py311(-gpu)?", aws["docker"][kind])
    assert aws["docker"]["worker_image"].endswith("-gpu")


# Kubernetes: no schema is at hand, so what matters is read off.


def test_pods_share_token_image_and_results(kubernetes: dict[str, Any]) -> None:
    assert kubernetes["RayCluster"]["spec"]["authOptions"] == {"mode": "token"}
    assert len({container["image"] for container in containers(kubernetes)}) == 1
    for container, group in zip(containers(kubernetes), pod_groups(kubernetes), strict=True):
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        assert mounts["shared"] == "/shared" and volumes["shared"]["persistentVolumeClaim"]["claimName"] == "raydd-shared"
        assert mounts["memory"] == "/dev/shm" and volumes["memory"]["emptyDir"]["medium"] == "Memory"


def test_pods_scale_between_nothing_and_a_limit(kubernetes: dict[str, Any]) -> None:
    spec = kubernetes["RayCluster"]["spec"]
    assert spec["enableInTreeAutoscaling"] is True and spec["autoscalerOptions"]["version"] == "v2"
    assert 60 <= spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 900
    for group in spec["workerGroupSpecs"]:
        assert (group["replicas"], group["minReplicas"]) == (0, 0) and 1 <= group["maxReplicas"] <= 8
        assert group["template"]["spec"]["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    head = spec["headGroupSpec"]["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert head["nodeSelectorTerms"] == [{"matchExpressions": [{"key": "cloud.google.com/gke-spot", "operator": "DoesNotExist"}]}]
    assert json.loads(json.loads(spec["headGroupSpec"]["rayStartParams"]["resources"])) == {"driver": 8}


def test_pods_are_reached_by_each_other_alone(kubernetes: dict[str, Any]) -> None:
    assert set(kubernetes) == {"RayCluster", "NetworkPolicy"}
    own = {"matchLabels": {"ray.io/cluster": kubernetes["RayCluster"]["metadata"]["name"]}}
    policy = kubernetes["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == own and policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{"from": [{"podSelector": own}]}]
    assert kubernetes["RayCluster"]["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert kubernetes["RayCluster"]["spec"]["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    for group in pod_groups(kubernetes):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert all(container["securityContext"] == {"allowPrivilegeEscalation": False} for container in pod["containers"])


# docs/cluster.md.

PAGE = (ROOT / "docs" / "cluster.md").read_text()


def shell_lines() -> list[list[str]]:
    """Every command of the page's shell blocks, as its words."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def own_commands() -> list[list[str]]:
    """Every `raydd` command of the page: by itself, quoted for `ray exec`, and after the dashes of `ray job submit`."""
    found = []
    for words in shell_lines():
        inner = [shlex.split(word.rpartition("&& ")[2]) for word in words if " " in word]
        rest = words[words.index("--") + 1 :] if "--" in words else words
        found += [command for command in (rest, *inner) if command[0] == "raydd"]
    return [list(words) for words in dict.fromkeys(map(tuple, found))]


def ray_commands() -> list[list[str]]:
    return [words[1:] for words in shell_lines() if words[0] == "ray"]


def test_there_are_commands_to_check() -> None:
    assert {words[0] for words in ray_commands()} >= {"up", "exec", "dashboard", "job", "down"}
    assert {words[1] for words in own_commands()} == {"distill", "evaluate", "report"}


@pytest.mark.parametrize("words", own_commands(), ids=" ".join)
def test_own_commands_are_understood(words: list[str]) -> None:
    import raydd.__main__ as command_line
    from raydd.methods.base import check

    assert words[1] in command_line._COMMANDS
    if words[1] == "distill" and "--resume" not in words:
        settings = command_line._settings("distill", words[2:])
        check(settings.config, settings.execution)
        assert settings.execution.address == "auto" and settings.execution.workers
        assert settings.execution.run.startswith("/shared/") and settings.execution.store.startswith("/shared/")


def test_rays_commands_exist_with_their_options() -> None:
    import click
    from ray.scripts.scripts import cli

    for words in ray_commands():
        command: click.Command = cli
        while isinstance(command, click.Group):
            assert words[0] in command.commands, words
            command, words = command.commands[words[0]], words[1:]
        own = words[: words.index("--")] if "--" in words else words
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in own if re.fullmatch(r"--?[a-z-]+", word)} <= known, (command.name, own)


def test_files_that_it_names_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / link).exists(), link
    for name in re.findall(r"\b(?:docs/cluster/)?[a-z]+\.yaml\b", PAGE):
        assert name in FILES or f"docs/cluster/{name}" in FILES, name


def test_values_to_fill_in_are_explained(aws: dict[str, Any]) -> None:
    for name in aws["metadata"]:
        assert f"**`{name}`**" in PAGE
