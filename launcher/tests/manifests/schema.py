"""Validates manifests against Kubernetes' own schemas, in which unknown fields are errors.

Arguments: the schema of JobSet's spec, then files. Against the newest Kubernetes that the package
knows, and 1.29: in older schemas each rule of a podFailurePolicy must have onPodConditions, which
Kubernetes itself did not ask for.
"""

import json
import sys

import kubernetes_validate
import yaml
from jsonschema import Draft7Validator

JOB_SET = Draft7Validator(json.load(open(sys.argv[1])))


def validate(document, version):
    if document["kind"] != "JobSet":
        return kubernetes_validate.validate(document, version, strict=True)
    assert document["apiVersion"] == "jobset.x-k8s.io/v1alpha2", document["apiVersion"]
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}, set(document)
    JOB_SET.validate(document["spec"])
    for job in document["spec"]["replicatedJobs"]:
        # Kubernetes defaults the version of a template, and a Job has a name.
        job = dict(job["template"], apiVersion="batch/v1", kind="Job")
        job["metadata"] = dict(job["metadata"], name="job", namespace="default")
        kubernetes_validate.validate(job, version, strict=True)
    # The metadata of any object.
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": document["metadata"]}
    kubernetes_validate.validate(config_map, version, strict=True)


for path in sys.argv[2:]:
    for document in yaml.safe_load_all(open(path)):
        for version in ("1.29", kubernetes_validate.latest_version()):
            try:
                validate(document, version)
            except Exception as error:
                sys.exit(f"{path}: {document['kind']} of {version}: {error}")
            print(path, document["kind"])
