"""A tenant that attacks its neighbours, one attack a script, each bounded in rate, count and time.

A person can run one by hand against a lab that is up:

    nsenter --net=/proc/PID/ns/net -- python3 -I tests/drills/tenants/packets.py syn --target 10.244.1.7 --port 80 \
        --rate 20000 --seconds 30
    python -m tests.drills.tenants.tenant --lab air relabel --namespace shop --seconds 60
    python -m tests.drills.tenants.stolen_key --lab air --node n3 --victim n1 --seconds 30

``packets`` and ``visits`` know the standard library alone, since they run inside a pod's network namespace; nothing
leaves the namespaces of the lab. ``tests/drills/test_tenants.py`` runs all at once.
"""
