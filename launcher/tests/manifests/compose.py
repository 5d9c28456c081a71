"""Four ranks that belong together. Arguments: compose.yaml. Prints the command, a word a line."""

import sys

import yaml

compose = yaml.safe_load(open(sys.argv[1]))
services = compose["services"]
ranks = {name: int(it["environment"]["ALLFOLD_RANK"]) for name, it in services.items()}
assert sorted(ranks.values()) == [0, 1, 2, 3], ranks
for name, service in services.items():
    environment = service["environment"]
    assert environment["ALLFOLD_WORLD_SIZE"] == str(len(services))
    host, port = environment["ALLFOLD_RENDEZVOUS"].split(":")
    assert ranks[host] == 0 and port.isdigit(), host
    # From outside, and an error where it is not there.
    assert environment["ALLFOLD_SECRET"].startswith("${ALLFOLD_SECRET:?"), name
    assert service["command"] == services["rank-0"]["command"]
    assert service["image"] == services["rank-0"]["image"]
    volumes = [it.split(":")[0] for it in service.get("volumes", [])]
    assert set(volumes) <= set(compose["volumes"])
    assert set(service["networks"]) <= set(compose["networks"])
print("\n".join(services["rank-0"]["command"]))
