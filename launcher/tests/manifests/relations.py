"""What no schema sees: whether the objects of a manifest belong together.

Argument: a manifest. Prints the container's command, a JSON list.
"""

import json
import sys

import yaml

objects = {it["kind"]: it for it in yaml.safe_load_all(open(sys.argv[1]))}
kinds = [kind for kind in ("StatefulSet", "Job", "JobSet") if kind in objects]
assert len(kinds) == 1, kinds
[kind] = kinds
workload = objects[kind]
name = workload["metadata"]["name"]
namespaces = {it["metadata"].get("namespace") for it in objects.values()}
assert len(namespaces) == 1, namespaces

spec = workload["spec"]
if kind == "JobSet":
    [job] = spec["replicatedJobs"]
    assert job["replicas"] == 1
    assert spec["network"] == {"enableDNSHostnames": True, "publishNotReadyAddresses": True}
    assert spec["failurePolicy"]["maxRestarts"] > 0
    # JobSet starts pods in the Service that has its name.
    assert "Service" not in objects
    spec = job["template"]["spec"]
    assert spec["backoffLimit"] == 0
template = spec["template"]
labels, pod = template["metadata"]["labels"], template["spec"]
[container] = pod["containers"]
environment = {it["name"]: it for it in container["env"]}
value = lambda name: environment[name]["value"]
ports = {it["name"]: it for it in container["ports"]}

# Who is which rank, and of how many.
ranks = int(value("ALLFOLD_WORLD_SIZE"))
if kind == "StatefulSet":
    assert spec["replicas"] == ranks
    assert spec["serviceName"] == objects["Service"]["metadata"]["name"]
    assert spec["podManagementPolicy"] == "Parallel"
    assert spec["updateStrategy"] == {"type": "OnDelete"}
    assert spec["selector"]["matchLabels"] == labels
    field = environment["ALLFOLD_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.labels['apps.kubernetes.io/pod-index']", field
    assert pod["restartPolicy"] == "Always"
else:
    assert spec["completions"] == spec["parallelism"] == ranks
    assert spec["completionMode"] == "Indexed"
    # JOB_COMPLETION_INDEX it is.
    assert "ALLFOLD_RANK" not in environment
    assert pod["restartPolicy"] == "Never"
    actions = [it["action"] for it in spec["podFailurePolicy"]["rules"]]
    assert actions == ["FailJob", "Ignore", "Ignore"], actions
    if kind == "Job":
        assert pod["subdomain"] == objects["Service"]["metadata"]["name"]
        # A Job's pods are named after it, which the Service's name must not hide.
        assert spec["backoffLimit"] >= ranks

# Names resolve before anybody is ready.
if "Service" in objects:
    service = objects["Service"]["spec"]
    assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"] is True
    assert service["selector"] == labels
    assert [it["port"] for it in service["ports"]] == [int(value("ALLFOLD_PORT"))]

# The ports, wherever they are named.
first, metrics = int(value("ALLFOLD_PORT")), int(value("ALLFOLD_METRICS").removeprefix(":"))
assert (ports["rendezvous"]["containerPort"], ports["rendezvous"]["protocol"]) == (first, "UDP")
assert (ports["metrics"]["containerPort"], ports["metrics"]["protocol"]) == (metrics, "TCP")
annotations = template["metadata"]["annotations"]
assert annotations["prometheus.io/port"] == str(metrics)
assert annotations["prometheus.io/path"] == "/metrics"
assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
for probe in ("livenessProbe", "startupProbe", "lifecycle"):
    assert probe not in container, probe

# Nobody else gets in, or is talked to.
policy = objects["NetworkPolicy"]["spec"]
own = [{"podSelector": {"matchLabels": labels}}]
assert policy["podSelector"]["matchLabels"] == labels
assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
between = {"protocol": "UDP", "port": first, "endPort": first + 8}
gpus = container["resources"]["limits"].get("nvidia.com/gpu")
# NCCL chooses its ports.
between = [between, {"protocol": "TCP"}] if gpus else [between]
inwards, scrape = policy["ingress"]
assert inwards == {"from": own, "ports": between}, inwards
assert scrape["ports"] == [{"protocol": "TCP", "port": metrics}]
assert all(set(it) == {"namespaceSelector"} for it in scrape["from"])
outwards, dns = policy["egress"]
assert outwards == {"to": own, "ports": between}, outwards
assert dns == {"ports": [{"protocol": it, "port": 53} for it in ("UDP", "TCP")]}, dns

# The secret is a file that this user alone reads, and never a value.
assert all("secret" not in str(it.get("valueFrom")).lower() for it in environment.values())
mounts = {it["name"]: it for it in container["volumeMounts"]}
volumes = {it["name"]: it for it in pod["volumes"]}
assert set(mounts) == set(volumes)
assert value("ALLFOLD_SECRET_FILE") == mounts["secret"]["mountPath"] + "/secret"
assert volumes["secret"]["secret"]["defaultMode"] == 0o400
heading = open(sys.argv[1]).readlines()[1]
secret = volumes["secret"]["secret"]["secretName"]
assert f"create secret generic {secret} --from-file=secret=/dev/stdin" in heading, heading
namespace = workload["metadata"].get("namespace")
assert (f"--namespace {namespace} " in heading) == (namespace is not None), heading

# Nobody is root.
security = pod["securityContext"]
assert security["runAsNonRoot"] is True and security["runAsUser"] > 0
assert security["fsGroup"] == security["runAsGroup"]
assert container["securityContext"]["allowPrivilegeEscalation"] is False
assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
assert pod["terminationGracePeriodSeconds"] == 60

# What is asked for.
resources = container["resources"]
assert {**resources["requests"], **({"nvidia.com/gpu": gpus} if gpus else {})} == resources["limits"]
assert ("tolerations" in pod) == (gpus is not None)
if "PersistentVolumeClaim" in objects:
    claim = objects["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    mounted = volumes["checkpoints"]["persistentVolumeClaim"]["claimName"]
    assert mounted == claim["metadata"]["name"]
if "PodDisruptionBudget" in objects:
    budget = objects["PodDisruptionBudget"]["spec"]
    assert budget["minAvailable"] == ranks and budget["selector"]["matchLabels"] == labels

print(json.dumps(container["command"]))
