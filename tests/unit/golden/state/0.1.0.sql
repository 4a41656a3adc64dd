-- A state database of release 0.1.0: {serial} is INTEGER in SQLite and SERIAL in PostgreSQL.
CREATE TABLE alarms (
  id {serial} NOT NULL,
  kind VARCHAR(32) NOT NULL,
  job VARCHAR(64) NOT NULL,
  machine TEXT NOT NULL,
  text TEXT NOT NULL,
  raised_at VARCHAR(40) NOT NULL,
  last_at VARCHAR(40) NOT NULL,
  acknowledged_at VARCHAR(40) NOT NULL,
  PRIMARY KEY (id)
);
CREATE TABLE checkpoint_intents (
  id VARCHAR(36) NOT NULL,
  host VARCHAR(64) NOT NULL,
  machine_id VARCHAR(64) NOT NULL,
  session VARCHAR(64) NOT NULL,
  recorded_at VARCHAR(40) NOT NULL,
  state VARCHAR(16) NOT NULL,
  checkpoint TEXT NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_checkpoint_intents_state ON checkpoint_intents (state);
CREATE TABLE replicas (
  installation VARCHAR(64) NOT NULL,
  source_host VARCHAR(64) NOT NULL,
  machine_id VARCHAR(64) NOT NULL,
  job VARCHAR(64) NOT NULL,
  name TEXT NOT NULL,
  path TEXT NOT NULL,
  state VARCHAR(16) NOT NULL,
  newest_point VARCHAR(64) NOT NULL,
  points INTEGER NOT NULL,
  seen_at VARCHAR(40) NOT NULL,
  PRIMARY KEY (installation, source_host, machine_id, job)
);
CREATE TABLE schema_version (
  version INTEGER NOT NULL
);
CREATE TABLE sessions (
  id VARCHAR(64) NOT NULL,
  job VARCHAR(64) NOT NULL,
  started_at VARCHAR(40) NOT NULL,
  ended_at VARCHAR(40) NOT NULL,
  outcome VARCHAR(16) NOT NULL,
  PRIMARY KEY (id)
);
CREATE INDEX ix_sessions_job ON sessions (job);
CREATE INDEX ix_sessions_started_at ON sessions (started_at);
CREATE TABLE stop_requests (
  session VARCHAR(64) NOT NULL,
  asked_at VARCHAR(40) NOT NULL,
  PRIMARY KEY (session)
);
CREATE TABLE machine_tasks (
  session VARCHAR(64) NOT NULL,
  position INTEGER NOT NULL,
  machine TEXT NOT NULL,
  machine_id VARCHAR(64) NOT NULL,
  replica TEXT NOT NULL,
  outcome VARCHAR(16) NOT NULL,
  changed_share FLOAT,
  report TEXT NOT NULL,
  PRIMARY KEY (session, position),
  FOREIGN KEY(session) REFERENCES sessions (id)
);
CREATE INDEX ix_machine_tasks_machine_id ON machine_tasks (machine_id);
CREATE INDEX ix_machine_tasks_replica ON machine_tasks (replica);
INSERT INTO schema_version (version) VALUES (1);
INSERT INTO sessions VALUES ('s01', 'nightly', '2026-01-01T22:00:00+00:00', '2026-01-01T22:10:00+00:00', 'done');
INSERT INTO sessions VALUES ('s02', 'nightly', '2026-01-02T22:00:00+00:00', '', '');
INSERT INTO machine_tasks VALUES ('s01', 0, 'web', 'id-web', 'web_replica', 'done', 0.5, '{"machine":"web","machine_id":"id-web","replica":"web_replica","outcome":"done","point":"p1","error":"","warnings":["one"],"alarms":[],"disks":[{"disk_id":"d0","place":"scsi:0:0","mode":"incremental","reason":"","virtual_size":10737418240,"read":0,"skipped":0,"changed":5368709120,"sent":0,"written":0,"zeroed":0,"resent_blocks":0,"busy_s":{"source":1.5}}],"steps_s":{}}');
INSERT INTO checkpoint_intents VALUES ('i1', 'production', 'id-web', 's02', '2026-01-02T22:00:01+00:00', 'intent', '');
INSERT INTO alarms (kind, job, machine, text, raised_at, last_at, acknowledged_at) VALUES ('rpo', 'nightly', 'web', '25 h old', '2026-01-01T00:00:00+00:00', '2026-01-01T00:00:00+00:00', '');
INSERT INTO alarms (kind, job, machine, text, raised_at, last_at, acknowledged_at) VALUES ('rpo', 'nightly', 'web', '26 h old', '2026-01-01T00:00:01+00:00', '2026-01-01T00:00:01+00:00', '');
INSERT INTO stop_requests VALUES ('s02', '2026-01-02T22:05:00+00:00');
INSERT INTO replicas VALUES ('main-site', 'production', 'id-web', 'nightly', 'web_replica', '/dr/web_replica', 'ready', 'p1', 1, '2026-01-01T22:10:00+00:00');
