"""Takes part in an election with the leader election of the Kubernetes project's Python client.

Arguments: kubeconfig, namespace, name of the Lease, identity, lease duration in seconds. Says `leads` and `led`.
"""

import sys
import threading

from kubernetes import config
from kubernetes.leaderelection.electionconfig import Config
from kubernetes.leaderelection.leaderelection import LeaderElection
from kubernetes.leaderelection.resourcelock.leaselock import LeaseLock

kubeconfig, namespace, name, identity, seconds = sys.argv[1:]
config.load_kube_config(config_file=kubeconfig)


def lead():
    print("leads", flush=True)
    threading.Event().wait()


def stop():
    print("led", flush=True)


LeaderElection(
    Config(
        LeaseLock(name, namespace, identity),
        lease_duration=int(seconds),
        renew_deadline=int(seconds) * 2 // 3,
        retry_period=1,
        onstarted_leading=lead,
        onstopped_leading=stop,
    )
).run()
