"""Stands for the `terraform` program: takes the arguments that terraform takes, or ends with 64.

Its state is a list of nodes in the module's folder, `mode` there makes it misbehave, and what it
"makes" joins the control plane as a machine would. `show -json` answers in Terraform 1.9's shape.
"""

import json
import os
import pathlib
import signal
import sys
import time
import urllib.request
import uuid


def check(holds: object, what: str) -> None:
    if not holds:
        print(f"stand-in: {what}: {sys.argv[1:]} in {pathlib.Path.cwd()}", flush=True)
        sys.exit(64)


def change(address: str, type: str, name: str, index: object, actions: list[str]) -> dict:
    before = {"id": "i-1"} if actions != ["create"] else None
    after = {"id": "i-1"} if "delete" not in actions or len(actions) > 1 else None
    made = {
        "address": address,
        "mode": "managed",
        "type": type,
        "name": name,
        "provider_name": "registry.terraform.io/hashicorp/aws",
        "change": {
            "actions": actions,
            "before": before,
            "after": after,
            "after_unknown": {},
            "before_sensitive": False,
            "after_sensitive": {},
        },
    }
    if index is not None:
        made["index"] = index
    return made


def node(name: object, actions: list[str], type: str = "aws_instance") -> dict:
    return change(f"{type}.node[{json.dumps(name)}]", type, "node", name, actions)


def join(name: str) -> None:
    body = {
        "name": name,
        "boot_id": str(uuid.uuid4()),
        "labels": {},
        "capabilities": {
            "hostname": name,
            "cpus": 1,
            "memory_bytes": 1,
            "engine": "process",
            "agent_version": "0",
        },
    }
    request = urllib.request.Request(
        API_URL + "/api/nodes/register",
        json.dumps(body).encode(),
        {
            "Authorization": "Bearer " + JOIN_TOKEN,
            "Content-Type": "application/json",
        },
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10):
        pass


module = pathlib.Path(sys.argv[1].removeprefix("-chdir="))
command, args = sys.argv[2], sys.argv[3:]
check(sys.argv[1].startswith("-chdir=/") and module == pathlib.Path.cwd(), "no module")
check(os.environ.get("TF_IN_AUTOMATION") == "1" and os.environ.get("TF_INPUT") == "0", "asks")
check(not [n for n in os.environ if n.startswith(("VYVO_", "TF_CLI_ARGS"))], "foreign variables")
data = pathlib.Path(os.environ["TF_DATA_DIR"])
check(data.is_absolute(), "TF_DATA_DIR")
API_URL = os.environ["TF_VAR_vyvo_api_url"]  # noqa: SIM112 - Terraform's own spelling
JOIN_TOKEN = os.environ["TF_VAR_vyvo_join_token"]  # noqa: SIM112
state_file, mode_file = module / "terraform.tfstate", module / "mode"
state = json.loads(state_file.read_text())["nodes"] if state_file.exists() else []
mode = mode_file.read_text().strip() if mode_file.exists() else ""

if command == "init":
    check(args == ["-input=false", "-no-color"], "arguments of init")
    data.mkdir(parents=True, exist_ok=True)
    print("Terraform has been successfully initialized!")
elif command == "plan":
    check(args[:3] == ["-input=false", "-no-color", "-lock-timeout=120s"], "arguments of plan")
    check(len(args) == 5 and args[3].startswith("-var-file=/"), "no variables")
    check(args[4].startswith("-out=/") and data.is_dir(), "no plan file, or no init")
    variables = pathlib.Path(args[3].removeprefix("-var-file="))
    check(variables.stat().st_mode & 0o777 == 0o600, "variables that others can read")
    asked = json.loads(variables.read_text())
    check(asked["size"] == len(asked["node_names"]), "size and node_names")
    check(asked["pool"] and asked["instance_type"] == "p5.48xlarge", "variables")
    if mode == "broken":
        print("Error: no credentials\n\x1b[31mfor provider\x00 aws")
        sys.exit(1)
    if mode == "hang":
        print("Acquiring state lock. This may take a few moments...", flush=True)
        signal.signal(signal.SIGINT, lambda *_: ((module / "interrupted").touch(), sys.exit(1)))
        time.sleep(120)
    if mode == "leak":
        print("token:", JOIN_TOKEN)
    names = asked["node_names"]
    pathlib.Path(args[4].removeprefix("-out=")).write_text(json.dumps([state, names]))
    print(
        f"Plan: {len(set(names) - set(state))} to add, 0 to change, "
        f"{len(set(state) - set(names))} to destroy."
    )
elif command == "show":
    check(args[:2] == ["-json", "-no-color"] and len(args) == 3, "arguments of show")
    before, names = json.loads(pathlib.Path(args[2]).read_text())
    gone, new = sorted(set(before) - set(names)), sorted(set(names) - set(before))
    changes = [node(n, ["create"]) for n in new] + [node(n, ["delete"]) for n in gone]
    changes += [node(n, ["delete"], "aws_eip") for n in gone]
    changes += [node(n, ["no-op"]) for n in sorted(set(names) & set(before))]
    data_source = change("data.aws_ami.base", "aws_ami", "base", None, ["read"])
    changes.append({**data_source, "mode": "data"})
    if mode == "greedy":
        changes.append(node(names[0], ["delete"]))
    elif mode == "replace":
        changes.append(node(names[0], ["delete", "create"]))
    elif mode == "database":
        changes.append(change("aws_db_instance.db", "aws_db_instance", "db", None, ["delete"]))
    elif mode == "forget":
        changes.append({**node("x", ["forget"]), "address": "aws_instance.x"})
    elif mode == "count":
        changes = [node(len(before) - 1 - i, ["delete"]) for i, _ in enumerate(gone)]
    elif mode == "swap" and gone:
        changes = [node(names[0], ["delete"])]
    elif mode == "unasked":
        changes.append(node("another", ["create"]))
    document = {
        "format_version": "9.0" if mode == "future" else "1.2",
        "terraform_version": "1.9.8",
        "planned_values": {},
        "resource_changes": changes,
        "configuration": {},
        "errored": mode == "errored",
        "applyable": True,
        "complete": True,
    }
    print("nonsense" if mode == "nonsense" else json.dumps(document))
elif command == "apply":
    check(args[:3] == ["-input=false", "-no-color", "-lock-timeout=120s"], "arguments of apply")
    check(len(args) == 4, "a plan, and only that")
    before, names = json.loads(pathlib.Path(args[3]).read_text())
    if before != state:
        print("Error: Saved plan is stale")
        sys.exit(1)
    for name in sorted(set(names) - set(before)):
        print(f'aws_instance.node["{name}"]: Creating...', flush=True)
        join(name)
    state_file.write_text(json.dumps({"nodes": names}))
    print("Apply complete!")
else:
    check(False, "unknown command")
