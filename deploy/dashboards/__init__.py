"""The dashboards, written once: Grafana's JSON and Prometheus' own console are made from what stands here.

What lives here: what each page shows (one file a page), the words for it (``panels``) and the two ways to write it down
(``grafana``, ``console``). ``python -m deploy.dashboards`` (``make dashboards``) writes the files; a test fails when
they are not what this would write.
"""
