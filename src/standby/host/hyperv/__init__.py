"""Hyper-V hosts and clusters, driven over WinRM; and the one owner of pywinrm.

How a call goes:

    control code ─▶ Door.run(verb, request)               door.py      deadline, retries, errors
                     │  Sessions: one Protocol and shell per call      sessions.py
                     │  payload: prelude + script + request            payload.py, scripts/*.ps1
                     ▼
                    pywinrm ─▶ powershell.exe on the host      bootstrap: reads its input, runs it
                     │
                     ▼
                    Answer[value] ◀─ base64 JSON between sentinels    answers.py, clixml.py

Logic lives in Python; a script is one verb of at most 40 lines, takes a list of machines, and
answers one step for each of them, so that one bad VM never hides the others. One call is one
script, whatever the number of machines. Who may sign in and how stands in credentials.py; the
host's own limits are read once and kept (quotas.py).
"""
