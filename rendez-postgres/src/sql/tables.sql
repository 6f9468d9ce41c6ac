-- Layout 1. `{schema}` is the schema's name, quoted. Times are microseconds since 1970 on the server's clock.
-- Names are compared byte by byte. What heartbeats write (`session`) is kept apart from what they never change.
--
-- The indexes of revisions say `cluster + 0`, and so do the queries that want them: for all others there is only one
-- index to choose, whatever the planner believes about tables that were empty a moment ago.

CREATE TABLE {schema}.layout (
    version int NOT NULL,
    functions int NOT NULL
);

-- One row a cluster. Whoever changes anything but the end of a session locks it first.
CREATE TABLE {schema}.cluster (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE,
    layout int NOT NULL DEFAULT 1,
    generation uuid NOT NULL,
    ancestors uuid[] NOT NULL DEFAULT '{}',
    history text NOT NULL,
    quiet_from bigint,
    quiet_lasts bigint,
    opened boolean NOT NULL DEFAULT false,
    revision bigint NOT NULL DEFAULT 0,
    token bigint NOT NULL DEFAULT 0,
    floor bigint NOT NULL DEFAULT 0,
    tombstones int NOT NULL DEFAULT 0,
    touched_at bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- What heartbeats write. No index on the expiry: an update stays within its page.
CREATE TABLE {schema}.session (
    cluster int NOT NULL,
    id uuid NOT NULL,
    expires_at bigint NOT NULL,
    ttl bigint NOT NULL,
    held_count bigint NOT NULL DEFAULT 0,
    held_digest bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (cluster, id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- The rest of a session; it lives and dies with the row above.
CREATE TABLE {schema}.session_info (
    cluster int NOT NULL,
    id uuid NOT NULL,
    node text COLLATE "C" NOT NULL,
    incarnation uuid NOT NULL,
    opened_at bigint NOT NULL,
    opened_by uuid NOT NULL,
    revision bigint NOT NULL,
    declared text[] COLLATE "C" NOT NULL,
    info json NOT NULL,
    PRIMARY KEY (cluster, id),
    UNIQUE (cluster, node)
);
CREATE INDEX session_info_revision ON {schema}.session_info ((cluster + 0), revision);

-- A slot whose holder is no row of `session` is an orphan.
CREATE TABLE {schema}.slot (
    cluster int NOT NULL,
    workload text COLLATE "C" NOT NULL,
    unit int NOT NULL,
    revision bigint NOT NULL,
    token bigint NOT NULL,
    factor bigint NOT NULL,
    granted_by uuid NOT NULL,
    holder uuid,
    node text COLLATE "C",
    taken_at bigint NOT NULL,
    freed_at bigint,
    moved_at bigint,
    offer_id uuid,
    offer_to uuid,
    offer_expires_at bigint,
    offer_giver_total bigint,
    offer_giver_of_workload bigint,
    offer_forced boolean,
    offer_ready boolean,
    force bigint,
    refusals jsonb,
    checkpoint bytea,
    PRIMARY KEY (cluster, workload, unit)
) WITH (fillfactor = 70);
CREATE INDEX slot_revision ON {schema}.slot ((cluster + 0), revision);

-- What operators write; `name` is empty and `unit` -1 where the kind has none.
CREATE TABLE {schema}.record (
    cluster int NOT NULL,
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    unit int NOT NULL,
    revision bigint NOT NULL,
    session_ttl_max bigint,
    cold_start_hold bigint,
    content json NOT NULL,
    PRIMARY KEY (cluster, kind, name, unit)
);
CREATE INDEX record_revision ON {schema}.record ((cluster + 0), revision);

-- What was deleted lately. `kind` is `session`, `slot`, or a kind of record.
CREATE TABLE {schema}.tombstone (
    cluster int NOT NULL,
    revision bigint NOT NULL,
    kind text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    unit int NOT NULL,
    id uuid
);
CREATE UNIQUE INDEX tombstone_revision ON {schema}.tombstone ((cluster + 0), revision);
CREATE INDEX tombstone_key ON {schema}.tombstone (cluster, kind, name, unit);

-- The largest token that `fence` has let through, for programs that keep their own data in this database.
CREATE TABLE {schema}.fence (
    resource text COLLATE "C" PRIMARY KEY,
    token bigint NOT NULL
) WITH (fillfactor = 50);

-- Every answer of a request: one row of kind 0 with its stamp, then rows for sessions (1), slots (2) and records (3).
-- ids of the stamp: generation; numbers: revision, now, largest token, rest of the quiet time.
CREATE TYPE {schema}.answer AS (
    kind smallint,
    status text,
    ids uuid[],
    numbers bigint[],
    texts text[],
    bytes bytea
);
