"""What is shipped for containers and clusters: it parses, fits together, names flags and metrics that exist.

Nothing here runs a container. Envoy's configuration is read by the real Envoy.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_server.cli import Flags
from cloud_server.server import SERVICE, CloudServer
from device_client.cli import Serve
from evaluation.replicas import envoy_binary, read_envoy, with_replicas

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILES = ("cloud.Dockerfile", "device.Dockerfile")
YAML = sorted(DEPLOY.rglob("*.y*ml"))
VALUE = r"[^\s\\]+"


def objects() -> dict[tuple[str, str], Any]:
    """Every Kubernetes object by kind and name."""
    found = {}
    for file in sorted((DEPLOY / "k8s").glob("*.yaml")):
        for item in yaml.safe_load_all(file.read_text()):
            found[item["kind"], item["metadata"]["name"]] = item
    return found


def dockerfile(name: str) -> str:
    """Its text with continued lines joined."""
    return (DEPLOY / name).read_text().replace("\\\n", " ")


@pytest.mark.parametrize("file", YAML, ids=lambda file: str(file.relative_to(DEPLOY)))
def test_every_yaml_file_parses(file: Path) -> None:
    assert all(isinstance(document, dict) for document in yaml.safe_load_all(file.read_text()))


def test_envoy_takes_its_configuration_as_shipped_and_as_tested(tmp_path: Path) -> None:
    tested = tmp_path / "envoy.json"
    config = with_replicas(read_envoy(DEPLOY / "envoy.yaml"), 50051, ["127.0.0.1:1", "127.0.0.1:2"])
    tested.write_text(json.dumps(config))
    for file in (DEPLOY / "envoy.yaml", tested):
        ran = subprocess.run([envoy_binary(), "--mode", "validate", "-c", str(file)], capture_output=True)
        assert ran.returncode == 0, ran.stderr.decode()[-2000:]


def test_envoy_never_times_an_image_out() -> None:
    (listener,) = read_envoy(DEPLOY / "envoy.yaml")["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    assert (manager["stream_idle_timeout"], manager["request_timeout"], route["timeout"]) == ("0s",) * 3
    (cluster,) = read_envoy(DEPLOY / "envoy.yaml")["static_resources"]["clusters"]
    assert cluster["lb_policy"] == "LEAST_REQUEST"
    assert cluster["health_checks"][0]["grpc_health_check"]["service_name"] == SERVICE


@pytest.mark.parametrize("name", DOCKERFILES)
def test_images_are_built_in_stages_and_run_without_rights(name: str) -> None:
    text = dockerfile(name)
    final = text.rpartition("\nFROM ")[2]
    assert text.count("FROM ") == 2 and "-c constraints.txt" in text
    assert re.search(r"^USER 10001$", final, re.MULTILINE) and "HEALTHCHECK" in final
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / part).exists() for part in source.split()), source


def test_every_setting_is_a_flag() -> None:
    cloud = {f"CIAR_{field.upper()}" for field in Flags.model_fields} | {"CIAR_TOKEN"}
    device = {f"CIAR_{field.upper()}" for field in Serve.model_fields} | {"CIAR_TOKEN", "CIAR_HTTP_TOKEN"}
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    container = objects()["Deployment", "cloud"]["spec"]["template"]["spec"]["containers"][0]
    set_cloud = {*compose["cloud"]["environment"], *(item["name"] for item in container["env"])}
    set_cloud |= set(re.findall(rf"(CIAR_\w+)={VALUE}", dockerfile("cloud.Dockerfile")))
    set_device = {*compose["device"]["environment"]}
    set_device |= set(re.findall(rf"(CIAR_\w+)={VALUE}", dockerfile("device.Dockerfile")))
    assert set_cloud <= cloud and len(set_cloud) > 6
    assert set_device <= device and len(set_device) > 4
    # A secret stands in no file: it comes from the caller's environment, or from a secret of the cluster.
    tokens = [compose[name]["environment"]["CIAR_TOKEN"] for name in ("cloud", "device")]
    assert tokens == ["${CIAR_TOKEN:-}"] * 2
    (secret,) = [item["valueFrom"] for item in container["env"] if item["name"] == "CIAR_TOKEN"]
    assert secret["secretKeyRef"]["optional"]


def test_compose_names_what_exists() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    for name, service in services.items():
        assert ("build" in service) != ("image" in service), name
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            assert (DEPLOY / volume.split(":")[0]).exists(), volume
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        if build := service.get("build"):
            assert (DEPLOY / build["context"] / build["dockerfile"]).is_file(), name
    grace_s = int(services["cloud"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > int(services["cloud"]["environment"]["CIAR_SHUTDOWN_TIMEOUT"])
    assert services["device"]["environment"]["CIAR_SERVER"].partition(":")[0] in services
    scraped = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    assert scraped["scrape_configs"][0]["dns_sd_configs"][0]["names"][0] in services


def test_a_pod_has_the_time_to_finish_its_images() -> None:
    pod = objects()["Deployment", "cloud"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    needs_s = container["lifecycle"]["preStop"]["sleep"]["seconds"] + int(settings["CIAR_SHUTDOWN_TIMEOUT"])
    assert pod["terminationGracePeriodSeconds"] > needs_s
    ports = {port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"]["port"] in ports
    assert container["readinessProbe"]["grpc"]["service"] == SERVICE


def test_kubernetes_objects_name_each_other() -> None:
    found = objects()
    for name in ("cloud", "envoy"):
        deployment = found["Deployment", name]["spec"]
        labels = deployment["template"]["metadata"]["labels"]
        assert deployment["selector"]["matchLabels"] == labels
        assert found["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"] == labels
    for (kind, _), item in found.items():
        if kind == "Service":
            target = found["Deployment", item["spec"]["selector"]["app"]]["spec"]["template"]["spec"]
            names = {port["name"] for port in target["containers"][0]["ports"]}
            assert {port["targetPort"] for port in item["spec"]["ports"]} <= names
    scaler = found["HorizontalPodAutoscaler", "cloud"]["spec"]
    assert (scaler["scaleTargetRef"]["kind"], scaler["scaleTargetRef"]["name"]) in found
    assert "replicas" not in found["Deployment", "cloud"]["spec"]
    (cluster,) = read_envoy(DEPLOY / "envoy.yaml")["static_resources"]["clusters"]
    endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert ("Service", endpoint["address"]["socket_address"]["address"]) in found
    kustomization = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    assert all((DEPLOY / file).is_file() for file in kustomization["resources"])


async def test_dashboard_and_autoscaler_read_metrics_that_exist(server: CloudServer) -> None:
    telemetry = server.telemetry
    known = {sample.name for family in telemetry.registry.collect() for sample in family.samples}
    known |= {f"{family.name}_total" for family in telemetry.registry.collect() if family.type == "counter"}
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "ciar.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {name for query in queries for name in re.findall(r"ciar_\w+", query)}
    (metric,) = objects()["HorizontalPodAutoscaler", "cloud"]["spec"]["metrics"]
    assert named | {metric["pods"]["metric"]["name"]} <= known
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}


def _health(port: int) -> int:
    command = [sys.executable, str(DEPLOY / "health.py"), f"127.0.0.1:{port}"]
    return subprocess.run(command, capture_output=True).returncode


async def test_the_health_check_of_the_image(server: CloudServer, unused_tcp_port: int) -> None:
    assert await asyncio.to_thread(_health, server.port) == 0
    assert await asyncio.to_thread(_health, unused_tcp_port) == 1
