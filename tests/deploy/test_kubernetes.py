"""deploy/kubernetes.yaml, as far as a machine without a cluster can judge it: by what the server
takes, and with -m downloads by the schemas that Kubernetes publishes."""

import re
import subprocess
import sys

import pytest

from marlin.cli import read
from marlin.config import OPTIONS, serve_config
from marlin.server.http.limits import Limits

yaml = pytest.importorskip("yaml", reason="PyYAML reads the manifests")
VALIDATOR, VERSIONS = "kubernetes-validate==1.37.0", ("1.27.0", "1.31.0")


@pytest.fixture(scope="module")
def manifests(deploy):
    """{kind: manifest}; there is one of each."""
    documents = list(yaml.safe_load_all((deploy / "kubernetes.yaml").read_text()))
    found = {document["kind"]: document for document in documents}
    assert len(found) == len(documents)
    return found


@pytest.fixture(scope="module")
def pod(manifests):
    return manifests["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    (one,) = pod["containers"]
    return one


def test_its_arguments_and_variables_are_settings_that_the_server_takes(container):
    variables = {one["name"]: one.get("value", "x" * 64) for one in container["env"]}
    known = {option.variable for option in OPTIONS} | {"METAL_MARLIN_API_KEY"}
    assert set(variables) <= known and variables["METAL_MARLIN_REQUIRE_KEY"] == "true"
    config = serve_config(vars(read(container["args"], {})), variables)
    assert config.port == container["ports"][0]["containerPort"]
    assert config.model_path.startswith(container["volumeMounts"][0]["mountPath"] + "/")


def test_streams_in_flight_have_their_time_before_a_pod_is_killed(pod, container):
    (sleep,) = re.findall(
        r"sleep\((\d+)\)", container["lifecycle"]["preStop"]["exec"]["command"][-1]
    )
    assert pod["terminationGracePeriodSeconds"] > int(sleep) + Limits().drain_s


def test_each_probe_asks_for_health_and_none_ends_a_pod_before_the_server_would(container):
    probes = {name: one for name, one in container.items() if name.endswith("Probe")}
    assert set(probes) == {"startupProbe", "readinessProbe", "livenessProbe"}
    assert all(one["httpGet"] == {"path": "/health", "port": "http"} for one in probes.values())
    live = probes["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] >= 60


def test_a_pod_has_no_rights_that_it_does_not_need(pod, container):
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_everything_selects_the_pods_of_the_deployment_and_nothing_goes_out(manifests):
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert manifests["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["Service"]["spec"]["selector"] == labels
    assert manifests["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    policy = manifests["NetworkPolicy"]["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["egress"] == [] and "Egress" in policy["policyTypes"]


def test_it_scales_on_the_queue_that_the_server_counts_and_keeps_one(manifests, checkout):
    scaler = manifests["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == manifests["Deployment"]["metadata"]["name"]
    (metric,) = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name.startswith("metal_marlin_") and name in (checkout / "docs/serving.md").read_text()
    budget = manifests["PodDisruptionBudget"]["spec"]["minAvailable"]
    assert 0 < budget < scaler["minReplicas"] == manifests["Deployment"]["spec"]["replicas"]


@pytest.mark.downloads
def test_the_published_schemas_take_every_manifest(deploy, tmp_path):
    words = [sys.executable, "-m", "pip", "install", "-q", "--target", tmp_path, VALIDATOR]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
    if "Could not find a version" in done.stderr or "Connection" in done.stderr:
        pytest.skip(f"no package index here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    program = (
        "import sys, yaml, kubernetes_validate as v\n"
        "for version in sys.argv[2:]:\n"
        "    for one in yaml.safe_load_all(open(sys.argv[1])):\n"
        "        v.validate(one, version, strict=True)\n"
        "        print(version, one['kind'])\n"
    )
    words = [sys.executable, "-c", program, deploy / "kubernetes.yaml", *VERSIONS]
    done = subprocess.run(
        list(map(str, words)), env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5 * len(VERSIONS)
