"""Run a notebook's cells, and interrupt one, in a process of its own: prints a JSON list of what each cell gave.

    python kernel.py '[["code", interrupt], ...]'

A cell that is to be interrupted is, when it has printed "now".
"""

import json
import sys

from jupyter_client.manager import start_new_kernel


def run(manager, client, code, interrupt):
    """Return the cell's outputs as pairs of a kind and what there is to see, changed ones in their place."""
    number, outputs, displays = client.execute(code), [], {}
    while True:
        message = client.get_iopub_msg(timeout=60)
        kind, content = message["msg_type"], message["content"]
        if interrupt and kind == "stream" and "now" in content["text"]:  # of a worker: of no cell, perhaps
            manager.interrupt_kernel()
        if message["parent_header"].get("msg_id") != number:
            continue
        if kind == "status" and content["execution_state"] == "idle":
            return outputs
        if kind == "stream":
            outputs.append((content["name"], content["text"]))
        elif kind == "error":
            outputs.append((kind, content["ename"]))
        elif kind in ("display_data", "execute_result"):
            displays[content.get("transient", {}).get("display_id")] = len(outputs)
            outputs.append((kind, content["data"]))
        elif kind == "update_display_data":
            outputs[displays[content["transient"]["display_id"]]] = ("display_data", content["data"])


def main():
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        print(json.dumps([run(manager, client, code, interrupt) for code, interrupt in json.loads(sys.argv[1])]))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main()
