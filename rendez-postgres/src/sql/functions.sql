-- Functions 1. Each request is one call, one transaction. Order of locks: first the cluster's row, then sessions'.
-- A heartbeat that changes nothing else locks its own session only, and nothing after it.
--
-- Sessions are deleted under the cluster's lock alone, so whoever holds that and has removed the expired ones knows
-- for the rest of the transaction who lives. `DELETE … WHERE expires_at <= now` waits for a heartbeat on its
-- way and looks again at the row that it leaves.

-- Looked at before anything else, by every release of every layout.
CREATE OR REPLACE FUNCTION {schema}.installed(OUT version int, OUT functions int)
LANGUAGE sql STABLE {guard} AS $$
    SELECT l.version, l.functions FROM {schema}.layout l
$$;

-- What is left of the quiet time.
CREATE OR REPLACE FUNCTION {schema}.quiet_left(c {schema}.cluster, at bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(greatest(c.quiet_from + c.quiet_lasts - at, 0), 0)
$$;

-- Refusals that have not ended; with `who`, one more of that node. Of too many, the one that ends first gives way.
CREATE OR REPLACE FUNCTION {schema}.refusals_after(before jsonb, at bigint, who text, ends bigint) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    kept jsonb;
BEGIN
    SELECT jsonb_agg(r.value ORDER BY r.place) INTO kept
    FROM jsonb_array_elements(before) WITH ORDINALITY AS r(value, place)
    WHERE (r.value->>'until')::bigint > at AND (who IS NULL OR r.value->>'node' <> who);
    IF ends > at THEN
        kept := coalesce(kept, '[]') || jsonb_build_object('node', who, 'until', ends);
        IF jsonb_array_length(kept) > 16 THEN
            kept := kept - (
                SELECT (r.place - 1)::int FROM jsonb_array_elements(kept) WITH ORDINALITY AS r(value, place)
                ORDER BY (r.value->>'until')::bigint, r.place LIMIT 1);
        END IF;
    END IF;
    RETURN kept;
END $$;

-- Writes the cluster's row back, and forgets the oldest of too many tombstones.
CREATE OR REPLACE FUNCTION {schema}.leave(c {schema}.cluster) RETURNS {schema}.cluster
LANGUAGE plpgsql AS $$
DECLARE
    v_gone int;
    v_floor bigint;
BEGIN
    IF c.tombstones > 4096 THEN
        WITH gone AS (
            DELETE FROM {schema}.tombstone t WHERE t.ctid = ANY (ARRAY(
                SELECT x.ctid FROM {schema}.tombstone x WHERE x.cluster + 0 = c.id
                ORDER BY x.revision LIMIT c.tombstones - 4096))
            RETURNING t.revision
        )
        SELECT count(*), max(gone.revision) INTO v_gone, v_floor FROM gone;
        c.tombstones := c.tombstones - v_gone;
        c.floor := greatest(c.floor, v_floor);
    END IF;
    UPDATE {schema}.cluster k SET
        generation = c.generation, ancestors = c.ancestors, history = c.history,
        quiet_from = c.quiet_from, quiet_lasts = c.quiet_lasts, opened = c.opened,
        revision = c.revision, token = c.token, floor = c.floor, tombstones = c.tombstones, touched_at = c.touched_at
    WHERE k.id = c.id;
    RETURN c;
END $$;

-- What every request begins with: find out whether data were lost, take in what the node reports, remove the
-- sessions that have ended. Answers the cluster's row with the present time in `touched_at`.
-- Without `p_lock`, the row is locked only if one of these has something to write.
CREATE OR REPLACE FUNCTION {schema}.enter(
    p_cluster text, p_generation uuid, p_token bigint, p_ttl_max bigint, p_lag bigint, p_fresh uuid, p_wait text,
    p_lock boolean
) RETURNS {schema}.cluster
LANGUAGE plpgsql AS $$
DECLARE
    c {schema}.cluster;
    before {schema}.cluster;
    v_now bigint;
    v_timeline text;
    v_history text;
    v_fresh boolean := false;
    v_foreign boolean;
    v_lasts bigint;
    v_count int;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'the server is a standby' USING ERRCODE = '25006';
    END IF;
    v_timeline := substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8);
    IF NOT p_lock THEN
        v_now := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
        SELECT * INTO c FROM {schema}.cluster k WHERE k.name = p_cluster;
        IF FOUND AND c.layout = 1 AND right(c.history, 8) = v_timeline AND p_token <= c.token
            AND (p_generation IS NULL OR p_generation = c.generation
                OR (c.quiet_from IS NULL AND p_generation = ANY (c.ancestors)))
            AND (c.quiet_from IS NULL OR (v_now >= c.quiet_from AND v_now < c.quiet_from + c.quiet_lasts))
            AND NOT EXISTS (SELECT FROM {schema}.session s WHERE s.cluster = c.id AND s.expires_at <= v_now)
        THEN
            c.touched_at := v_now;
            RETURN c;
        END IF;
    END IF;

    PERFORM set_config('lock_timeout', p_wait, true);
    -- Reads a file, so it is looked at only where something can be granted or written.
    v_history := (SELECT system_identifier FROM pg_control_system())::text || '/' || v_timeline;
    SELECT * INTO c FROM {schema}.cluster k WHERE k.name = p_cluster FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        INSERT INTO {schema}.cluster (name, generation, history) VALUES (p_cluster, p_fresh, v_history)
        ON CONFLICT (name) DO NOTHING;
        v_fresh := FOUND;
        SELECT * INTO c FROM {schema}.cluster k WHERE k.name = p_cluster FOR NO KEY UPDATE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the cluster was deleted meanwhile' USING ERRCODE = '40001';
        END IF;
    END IF;
    IF c.layout <> 1 THEN
        RAISE EXCEPTION 'the cluster''s data have layout %, this release knows layout 1', c.layout
            USING ERRCODE = 'RZ001';
    END IF;
    before := c;
    -- Only now: whoever held the lock before may have taken long.
    v_now := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
    c.touched_at := v_now;
    v_foreign := p_generation IS NOT NULL AND p_generation <> c.generation;
    c.token := greatest(c.token, p_token);

    -- Where the clock has gone back behind the beginning of the quiet time, it is counted from there.
    IF c.quiet_from IS NOT NULL THEN
        c.quiet_from := least(c.quiet_from, v_now);
        IF v_now >= c.quiet_from + c.quiet_lasts THEN
            c.quiet_from := NULL;
            c.quiet_lasts := NULL;
        END IF;
    END IF;

    IF c.history <> v_history OR (v_foreign AND (c.quiet_from IS NOT NULL OR NOT p_generation = ANY (c.ancestors))) THEN
        -- The longest that a runner from before the loss may still run: 24 hours is the longest TTL of all.
        SELECT least(greatest(p_ttl_max,
            (SELECT max(r.session_ttl_max) FROM {schema}.record r WHERE r.cluster = c.id AND r.kind = 'settings'),
            (SELECT max(s.ttl) FROM {schema}.session s WHERE s.cluster = c.id)), 86400000000) + p_lag + 1000000
        INTO v_lasts;
        IF c.history <> v_history OR NOT p_generation = ANY (c.ancestors) THEN
            IF NOT v_fresh THEN
                c.ancestors := array_remove(c.ancestors, c.generation) || c.generation;
                c.generation := p_fresh;
            END IF;
            IF v_foreign AND NOT p_generation = ANY (c.ancestors) THEN
                c.ancestors := c.ancestors || p_generation;
            END IF;
            c.ancestors := c.ancestors[greatest(cardinality(c.ancestors) - 63, 1):];
            c.history := v_history;
            -- Tokens are whole numbers below 2^53 in every store; the floor rises by 2^30.
            c.token := least(c.token + 1073741824, 9007199254740991);
            c.quiet_lasts := greatest(v_lasts, {schema}.quiet_left(c, v_now));
            c.quiet_from := v_now;
        ELSE
            -- A report from before the loss may know of a longer TTL than the store does.
            c.quiet_lasts := greatest(c.quiet_lasts, v_lasts);
        END IF;
    END IF;

    IF EXISTS (SELECT FROM {schema}.session s WHERE s.cluster = c.id AND s.expires_at <= v_now) THEN
        WITH gone AS (
            DELETE FROM {schema}.session s WHERE s.cluster = c.id AND s.expires_at <= v_now
            RETURNING s.id, s.expires_at
        ), info AS (
            DELETE FROM {schema}.session_info i
            WHERE i.cluster = c.id AND i.id = ANY (ARRAY(SELECT gone.id FROM gone))
        )
        INSERT INTO {schema}.tombstone (cluster, revision, kind, name, unit, id)
        SELECT c.id, c.revision + row_number() OVER (ORDER BY gone.expires_at, gone.id), 'session', '', -1, gone.id
        FROM gone;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        c.revision := c.revision + v_count;
        c.tombstones := c.tombstones + v_count;
    END IF;
    before.touched_at := v_now;
    IF c IS DISTINCT FROM before THEN
        c := {schema}.leave(c);
    END IF;
    RETURN c;
END $$;

CREATE OR REPLACE FUNCTION {schema}.open(
    p_cluster text, p_generation uuid, p_token bigint, p_ttl_max bigint, p_lag bigint, p_fresh uuid, p_wait text,
    p_channel text,
    p_session uuid, p_operation uuid, p_incarnation uuid, p_replaces uuid, p_ttl bigint, p_node text, p_info text,
    p_declared text[], p_settings text, p_settings_ttl_max bigint, p_settings_cold bigint
) RETURNS SETOF {schema}.answer
LANGUAGE plpgsql {guard} AS $$
DECLARE
    c {schema}.cluster;
    v_now bigint;
    mine {schema}.session_info;
    me {schema}.session;
    settings {schema}.record;
    v_gone int;
    v_ttl_max bigint := p_settings_ttl_max;
    v_cold bigint := p_settings_cold;
BEGIN
    c := {schema}.enter(p_cluster, p_generation, p_token, p_ttl_max, p_lag, p_fresh, p_wait, true);
    v_now := c.touched_at;
    SELECT * INTO settings FROM {schema}.record x
    WHERE x.cluster = c.id AND x.kind = 'settings' AND x.name = '' AND x.unit = -1;
    IF FOUND THEN
        v_ttl_max := settings.session_ttl_max;
        v_cold := settings.cold_start_hold;
    END IF;
    SELECT * INTO mine FROM {schema}.session_info x WHERE x.cluster = c.id AND x.node = p_node;
    IF FOUND AND mine.opened_by = p_operation THEN
        UPDATE {schema}.session x SET expires_at = v_now + x.ttl WHERE x.cluster = c.id AND x.id = mine.id
        RETURNING * INTO me;
        RETURN NEXT ROW(0, 'opened', ARRAY[c.generation, mine.id],
            ARRAY[c.revision, v_now, c.token, {schema}.quiet_left(c, v_now), me.ttl],
            ARRAY[settings.content::text], NULL)::{schema}.answer;
        RETURN;
    END IF;
    IF p_ttl > v_ttl_max THEN
        RETURN NEXT ROW(0, 'ttl', ARRAY[c.generation],
            ARRAY[c.revision, v_now, c.token, {schema}.quiet_left(c, v_now), v_ttl_max], NULL, NULL)::{schema}.answer;
        RETURN;
    END IF;
    IF mine.id IS NOT NULL THEN
        IF mine.incarnation <> p_incarnation OR p_replaces IS DISTINCT FROM mine.id THEN
            SELECT * INTO me FROM {schema}.session x WHERE x.cluster = c.id AND x.id = mine.id;
            RETURN NEXT ROW(0, 'in_use', ARRAY[c.generation, mine.id, mine.incarnation],
                ARRAY[c.revision, v_now, c.token, {schema}.quiet_left(c, v_now), greatest(me.expires_at - v_now, 0)],
                NULL, NULL)::{schema}.answer;
            RETURN;
        END IF;
        c := {schema}.end_session(c, mine.id);
        PERFORM pg_notify(p_channel, '*');
    END IF;
    IF settings.content IS NULL THEN
        c.revision := c.revision + 1;
        INSERT INTO {schema}.record (cluster, kind, name, unit, revision, session_ttl_max, cold_start_hold, content)
        VALUES (c.id, 'settings', '', -1, c.revision, v_ttl_max, v_cold, p_settings::json);
        DELETE FROM {schema}.tombstone t
        WHERE t.cluster = c.id AND t.kind = 'settings' AND t.name = '' AND t.unit = -1;
        GET DIAGNOSTICS v_gone = ROW_COUNT;
        c.tombstones := c.tombstones - v_gone;
    END IF;
    IF NOT c.opened THEN
        c.opened := true;
        c.quiet_lasts := greatest(v_cold, {schema}.quiet_left(c, v_now));
        c.quiet_from := v_now;
        IF c.quiet_lasts = 0 THEN
            c.quiet_from := NULL;
            c.quiet_lasts := NULL;
        END IF;
    END IF;
    c.revision := c.revision + 1;
    INSERT INTO {schema}.session (cluster, id, expires_at, ttl) VALUES (c.id, p_session, v_now + p_ttl, p_ttl);
    INSERT INTO {schema}.session_info
        (cluster, id, node, incarnation, opened_at, opened_by, revision, declared, info)
    VALUES (c.id, p_session, p_node, p_incarnation, v_now, p_operation, c.revision, p_declared, p_info::json);
    c := {schema}.leave(c);
    RETURN NEXT ROW(0, 'opened', ARRAY[c.generation, p_session],
        ARRAY[c.revision, v_now, c.token, {schema}.quiet_left(c, v_now), p_ttl],
        ARRAY[settings.content::text], NULL)::{schema}.answer;
END $$;

-- Deletes a session; the caller holds the cluster's lock and writes its row.
CREATE OR REPLACE FUNCTION {schema}.end_session(c {schema}.cluster, p_session uuid) RETURNS {schema}.cluster
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM {schema}.session s WHERE s.cluster = c.id AND s.id = p_session;
    IF FOUND THEN
        DELETE FROM {schema}.session_info i WHERE i.cluster = c.id AND i.id = p_session;
        c.revision := c.revision + 1;
        c.tombstones := c.tombstones + 1;
        INSERT INTO {schema}.tombstone (cluster, revision, kind, name, unit, id)
        VALUES (c.id, c.revision, 'session', '', -1, p_session);
    END IF;
    RETURN c;
END $$;

CREATE OR REPLACE FUNCTION {schema}.close(
    p_cluster text, p_generation uuid, p_token bigint, p_ttl_max bigint, p_lag bigint, p_fresh uuid, p_wait text,
    p_channel text,
    p_session uuid
) RETURNS SETOF {schema}.answer
LANGUAGE plpgsql {guard} AS $$
DECLARE
    c {schema}.cluster;
    v_before bigint;
BEGIN
    c := {schema}.enter(p_cluster, p_generation, p_token, p_ttl_max, p_lag, p_fresh, p_wait, true);
    v_before := c.revision;
    c := {schema}.end_session(c, p_session);
    IF c.revision <> v_before THEN
        c := {schema}.leave(c);
        PERFORM pg_notify(p_channel, '*');
    END IF;
    RETURN NEXT ROW(0, 'closed', ARRAY[c.generation],
        ARRAY[c.revision, c.touched_at, c.token, {schema}.quiet_left(c, c.touched_at)], NULL, NULL)::{schema}.answer;
END $$;

-- numbers after the stamp's: TTL, held count and digest, floor of the change log, then what is left of each due session
-- (ids after the generation).
CREATE OR REPLACE FUNCTION {schema}.heartbeat(
    p_cluster text, p_generation uuid, p_token bigint, p_ttl_max bigint, p_lag bigint, p_fresh uuid, p_wait text,
    p_channel text,
    p_session uuid, p_since bigint, p_most int, p_due bigint, p_node text, p_info text, p_declared text[]
) RETURNS SETOF {schema}.answer
LANGUAGE plpgsql {guard} AS $$
DECLARE
    c {schema}.cluster;
    v_now bigint;
    mine {schema}.session_info;
    me {schema}.session;
    v_due_ids uuid[];
    v_due_rest bigint[];
BEGIN
    c := {schema}.enter(p_cluster, p_generation, p_token, p_ttl_max, p_lag, p_fresh, p_wait, p_info IS NOT NULL);
    v_now := c.touched_at;
    IF p_info IS NOT NULL THEN
        SELECT * INTO mine FROM {schema}.session_info x WHERE x.cluster = c.id AND x.id = p_session;
        IF FOUND AND mine.node <> p_node THEN
            RETURN NEXT ROW(0, 'node', ARRAY[c.generation],
                ARRAY[c.revision, v_now, c.token, {schema}.quiet_left(c, v_now)], ARRAY[mine.node],
                NULL)::{schema}.answer;
            RETURN;
        END IF;
        IF FOUND AND mine.info::text <> p_info THEN
            c.revision := c.revision + 1;
            UPDATE {schema}.session_info x SET info = p_info::json, declared = p_declared, revision = c.revision
            WHERE x.cluster = c.id AND x.id = p_session;
            c := {schema}.leave(c);
            PERFORM pg_notify(p_channel, '*');
        END IF;
    END IF;
    UPDATE {schema}.session x SET expires_at = v_now + x.ttl
    WHERE x.cluster = c.id AND x.id = p_session AND x.expires_at > v_now
    RETURNING * INTO me;
    IF NOT FOUND THEN
        RETURN NEXT ROW(0, 'lost', ARRAY[c.generation],
            ARRAY[c.revision, v_now, c.token, {schema}.quiet_left(c, v_now)], NULL, NULL)::{schema}.answer;
        RETURN;
    END IF;
    -- From here on nobody can change what this session holds, for that is kept up in its row: what is read now fits it.
    IF p_due > 0 THEN
        SELECT array_agg(d.id), array_agg(d.rest) INTO v_due_ids, v_due_rest FROM (
            SELECT x.id, x.expires_at - v_now AS rest FROM {schema}.session x
            WHERE x.cluster = c.id AND x.expires_at <= v_now + p_due AND x.expires_at > v_now AND x.id <> p_session
            ORDER BY x.expires_at, x.id LIMIT 64) d;
    END IF;
    SELECT * INTO c FROM {schema}.cluster k WHERE k.id = c.id;
    IF p_since IS NULL OR p_since >= c.revision OR p_since < c.floor OR p_generation IS DISTINCT FROM c.generation THEN
        RETURN NEXT ROW(0, 'beat', ARRAY[c.generation] || v_due_ids,
            ARRAY[c.revision, v_now, c.token, {schema}.quiet_left(c, v_now), me.ttl, me.held_count, me.held_digest,
                c.floor] || v_due_rest, NULL, NULL)::{schema}.answer;
        RETURN;
    END IF;
    -- One statement, so that revision and changes are of one moment.
    RETURN QUERY
    SELECT 0::smallint, 'beat'::text, ARRAY[k.generation] || v_due_ids,
        ARRAY[k.revision, v_now, k.token, {schema}.quiet_left(k, v_now), me.ttl, me.held_count, me.held_digest, k.floor]
        || v_due_rest, NULL::text[], NULL::bytea
    FROM {schema}.cluster k WHERE k.id = c.id
    UNION ALL
    SELECT a.* FROM (
        (SELECT {session_item} FROM {schema}.session_info i JOIN {schema}.session x USING (cluster, id)
            WHERE i.cluster + 0 = c.id AND i.revision > p_since ORDER BY i.revision LIMIT p_most + 1)
        UNION ALL
        (SELECT {slot_item} FROM {schema}.slot s
            WHERE s.cluster + 0 = c.id AND s.revision > p_since ORDER BY s.revision LIMIT p_most + 1)
        UNION ALL
        (SELECT {record_item} FROM {schema}.record r
            WHERE r.cluster + 0 = c.id AND r.revision > p_since ORDER BY r.revision LIMIT p_most + 1)
        UNION ALL
        (SELECT CASE t.kind WHEN 'session' THEN 1 WHEN 'slot' THEN 2 ELSE 3 END::smallint, 'deleted'::text,
            ARRAY[t.id], ARRAY[t.revision, t.unit],
            CASE t.kind WHEN 'slot' THEN ARRAY[t.name] ELSE ARRAY[t.kind, t.name] END, NULL::bytea
            FROM {schema}.tombstone t
            WHERE t.cluster + 0 = c.id AND t.revision > p_since ORDER BY t.revision LIMIT p_most + 1)
    ) a(kind, status, ids, numbers, texts, bytes);
END $$;

-- Some slots are there that were deleted before: what remembers that is forgotten.
CREATE OR REPLACE FUNCTION {schema}.slots_are_back(c {schema}.cluster, p_workloads text[], p_units int[])
RETURNS {schema}.cluster
LANGUAGE plpgsql AS $$
DECLARE
    v_count int;
BEGIN
    IF c.tombstones > 0 AND EXISTS (SELECT FROM {schema}.tombstone t WHERE t.cluster = c.id AND t.kind = 'slot') THEN
        DELETE FROM {schema}.tombstone t WHERE t.ctid = ANY (ARRAY(
            SELECT old.place FROM unnest(p_workloads, p_units) AS i(workload, unit),
            LATERAL (SELECT x.ctid AS place FROM {schema}.tombstone x
                WHERE x.cluster = c.id AND x.kind = 'slot' AND x.name = i.workload AND x.unit = i.unit LIMIT 1) old,
            LATERAL (SELECT FROM {schema}.slot x
                WHERE x.cluster = c.id AND x.workload = i.workload AND x.unit = i.unit LIMIT 1) new));
        GET DIAGNOSTICS v_count = ROW_COUNT;
        c.tombstones := c.tombstones - v_count;
    END IF;
    RETURN c;
END $$;

-- The changes come as arrays, one element each; `p_starts` says where a slot comes again, so that no part between two
-- of them names a slot twice: each part is decided and written at once. Answers a slot for each change, in order; its
-- status is the conflict, or empty. Where all are first grants the status of the stamp is `granted` and there are no
-- rows: tokens and revisions end with the stamp's, and the rest is in the request and the node's name.
CREATE OR REPLACE FUNCTION {schema}.change(
    p_cluster text, p_generation uuid, p_token bigint, p_ttl_max bigint, p_lag bigint, p_fresh uuid, p_wait text,
    p_channel text,
    p_session uuid, p_starts int[], p_kinds text[], p_workloads text[], p_units int[], p_factors bigint[],
    p_tokens bigint[], p_operations uuid[], p_offers uuid[], p_receivers uuid[], p_durations bigint[],
    p_totals bigint[], p_of_workloads bigint[], p_forced boolean[], p_checkpoints bytea[]
) RETURNS SETOF {schema}.answer
LANGUAGE plpgsql {guard} AS $$
DECLARE
    c {schema}.cluster;
    v_now bigint;
    v_node text;
    v_quiet boolean;
    v_known boolean;
    v_base bigint;
    v_part int;
    v_first int;
    v_last int;
    v_written bigint;
    v_granted bigint;
    v_adopted bigint;
    v_fresh bigint;
    v_hints text[];
    v_all_hints text[] := '{}';
    v_answers {schema}.answer[];
BEGIN
    c := {schema}.enter(p_cluster, p_generation, p_token, p_ttl_max, p_lag, p_fresh, p_wait, true);
    v_now := c.touched_at;
    SELECT i.node INTO v_node FROM {schema}.session_info i WHERE i.cluster = c.id AND i.id = p_session;
    IF NOT FOUND OR greatest(c.token, v_now) > 9007199254740991 - cardinality(p_kinds) THEN
        RETURN NEXT ROW(0, CASE WHEN v_node IS NULL THEN 'lost' ELSE 'token' END, ARRAY[c.generation],
            ARRAY[c.revision, v_now, c.token, {schema}.quiet_left(c, v_now)], NULL, NULL)::{schema}.answer;
        RETURN;
    END IF;
    v_quiet := c.quiet_from IS NOT NULL;
    v_known := p_generation IS NOT DISTINCT FROM c.generation;
    IF NOT v_quiet AND cardinality(p_starts) = 1 AND 'acquire' = ALL (p_kinds) AND 0 = ALL (p_tokens) THEN
        -- Slots that nobody has ever held: there is nothing to read. If one of them has a record after all, all are
        -- looked at below.
        BEGIN
            v_base := greatest(c.token, v_now);
            WITH written AS (
                INSERT INTO {schema}.slot
                    (cluster, workload, unit, revision, token, factor, granted_by, holder, node, taken_at)
                SELECT c.id, i.workload, i.unit, c.revision + i.n, v_base + i.n, i.factor, i.operation, p_session,
                    v_node, v_now
                FROM unnest(p_workloads, p_units, p_factors, p_operations) WITH ORDINALITY
                    AS i(workload, unit, factor, operation, n)
                RETURNING factor, token
            )
            SELECT count(*), sum(w.factor * (w.token % 1048573 + 1) % 4294967291)::bigint
            INTO v_written, v_adopted FROM written w;
            UPDATE {schema}.session x SET held_count = x.held_count + v_written,
                held_digest = (x.held_digest + v_adopted) % 4294967291
            WHERE x.cluster = c.id AND x.id = p_session;
            c.revision := c.revision + v_written;
            c.token := v_base + v_written;
            c := {schema}.slots_are_back(c, p_workloads, p_units);
            c := {schema}.leave(c);
            RETURN NEXT ROW(0, 'granted', ARRAY[c.generation],
                ARRAY[c.revision, v_now, c.token, {schema}.quiet_left(c, v_now)], ARRAY[v_node], NULL)::{schema}.answer;
            RETURN;
        EXCEPTION WHEN unique_violation THEN
            -- Nothing is written: only the insertion fails so, and `c` is as it was.
            NULL;
        END;
    END IF;
    FOR v_part IN 1 .. cardinality(p_starts) LOOP
        v_first := p_starts[v_part];
        v_last := coalesce(p_starts[v_part + 1] - 1, cardinality(p_kinds));
        v_base := greatest(c.token, v_now);
        WITH input AS (
            SELECT i.*, s.place, s.token AS was_token, s.factor AS was_factor, s.granted_by AS was_granted_by,
                s.holder AS was_holder, s.node AS was_node, s.taken_at AS was_taken_at, s.freed_at AS was_freed_at,
                s.moved_at AS was_moved_at, s.offer_id AS was_offer_id, s.offer_to AS was_offer_to,
                s.offer_expires_at AS was_offer_expires_at, s.offer_giver_total AS was_offer_giver_total,
                s.offer_giver_of_workload AS was_offer_giver_of_workload, s.offer_forced AS was_offer_forced,
                s.offer_ready AS was_offer_ready, s.force AS was_force, s.refusals AS was_refusals,
                s.checkpoint AS was_checkpoint, s.revision AS was_revision, h.id AS live_holder,
                to_.id AS live_receiver, to_.node AS receiver_node
            FROM unnest(p_kinds[v_first:v_last], p_workloads[v_first:v_last], p_units[v_first:v_last],
                p_factors[v_first:v_last], p_tokens[v_first:v_last], p_operations[v_first:v_last],
                p_offers[v_first:v_last], p_receivers[v_first:v_last], p_durations[v_first:v_last],
                p_totals[v_first:v_last], p_of_workloads[v_first:v_last], p_forced[v_first:v_last],
                p_checkpoints[v_first:v_last]) WITH ORDINALITY
                AS i(kind, workload, unit, factor, token, operation, offer, receiver, duration, total, of_workload,
                    forced, checkpoint, n)
            -- One look into an index for each, however large the tables are: the limits forbid any other plan.
            LEFT JOIN LATERAL (
                SELECT x.ctid AS place, x.* FROM {schema}.slot x
                WHERE x.cluster = c.id AND x.workload = i.workload AND x.unit = i.unit LIMIT 1) s ON true
            LEFT JOIN LATERAL (
                SELECT x.id FROM {schema}.session x WHERE x.cluster = c.id AND x.id = s.holder LIMIT 1) h ON true
            LEFT JOIN LATERAL (
                SELECT x.id, x.node FROM {schema}.session_info x
                WHERE i.kind IN ('offer', 'transfer') AND x.cluster = c.id
                    AND x.id = coalesce(i.receiver, s.offer_to) LIMIT 1) to_ ON true
            OFFSET 0
        ), judged AS (
            -- Conflicts begin with `!`; the order of the tests is the contract's.
            SELECT b.*, CASE b.kind
                WHEN 'acquire' THEN CASE
                    WHEN v_quiet THEN '!quiet'
                    WHEN b.was_granted_by = b.operation AND b.was_holder = p_session THEN 'unchanged'
                    WHEN coalesce(b.was_token, 0) <> b.token THEN '!token'
                    WHEN b.was_holder <> p_session AND b.live_holder IS NOT NULL THEN '!held'
                    ELSE 'grant' END
                WHEN 'release' THEN CASE
                    WHEN coalesce(b.was_token, 0) <> b.token THEN '!token'
                    WHEN b.was_holder IS NULL THEN 'unchanged'
                    WHEN b.was_holder <> p_session THEN '!not_holder'
                    ELSE 'release' END
                WHEN 'offer' THEN CASE
                    WHEN coalesce(b.was_token, 0) <> b.token THEN '!token'
                    WHEN b.was_holder IS DISTINCT FROM p_session THEN '!not_holder'
                    WHEN b.was_offer_id = b.operation THEN 'unchanged'
                    WHEN b.receiver = p_session OR b.live_receiver IS NULL THEN '!receiver_gone'
                    ELSE 'offer' END
                WHEN 'withdraw' THEN CASE
                    WHEN coalesce(b.was_token, 0) <> b.token THEN '!token'
                    WHEN b.was_holder IS DISTINCT FROM p_session THEN '!not_holder'
                    WHEN b.was_offer_id IS DISTINCT FROM b.offer THEN 'unchanged'
                    ELSE 'withdraw' END
                WHEN 'accept' THEN CASE
                    WHEN coalesce(b.was_token, 0) <> b.token THEN '!token'
                    WHEN b.was_offer_id IS DISTINCT FROM b.offer OR b.was_offer_to IS DISTINCT FROM p_session
                        OR b.was_offer_expires_at <= v_now THEN '!offer'
                    WHEN b.was_offer_ready THEN 'unchanged'
                    ELSE 'accept' END
                WHEN 'refuse' THEN CASE
                    WHEN coalesce(b.was_token, 0) <> b.token THEN '!token'
                    WHEN b.was_offer_id IS DISTINCT FROM b.offer OR b.was_offer_to IS DISTINCT FROM p_session
                        OR b.was_offer_expires_at <= v_now THEN '!offer'
                    ELSE 'refuse' END
                WHEN 'transfer' THEN CASE
                    WHEN v_quiet THEN '!quiet'
                    WHEN b.was_granted_by = b.operation THEN 'unchanged'
                    WHEN coalesce(b.was_token, 0) <> b.token THEN '!token'
                    WHEN b.was_holder IS DISTINCT FROM p_session THEN '!not_holder'
                    WHEN b.was_offer_id IS DISTINCT FROM b.offer THEN '!offer'
                    WHEN b.live_receiver IS NULL THEN '!receiver_gone'
                    WHEN b.was_offer_expires_at <= v_now OR NOT b.was_offer_ready THEN '!offer'
                    ELSE 'grant' END
                WHEN 'checkpoint' THEN CASE
                    WHEN coalesce(b.was_token, 0) <> b.token THEN '!token'
                    WHEN b.was_holder IS DISTINCT FROM p_session THEN '!not_holder'
                    ELSE 'checkpoint' END
                WHEN 'readopt' THEN CASE
                    WHEN b.token < coalesce(b.was_token, 0) OR b.token = 0 OR b.token > 9007199254740991 THEN '!token'
                    -- Without a holder it was let go: a late copy of a re-adoption must not bring it back.
                    WHEN b.token = b.was_token AND b.was_holder IS NULL THEN '!not_holder'
                    WHEN b.token = b.was_token AND b.was_node <> v_node THEN '!held'
                    WHEN NOT v_quiet OR NOT v_known THEN '!not_quiet'
                    WHEN b.token = b.was_token AND b.was_holder = p_session THEN 'unchanged'
                    WHEN b.token = b.was_token THEN 'adopt'
                    ELSE 'grant' END
                END AS verdict
            FROM input b OFFSET 0
        ), done AS (
            SELECT j.*, w.written,
                CASE WHEN w.written THEN c.revision + count(*) FILTER (WHERE w.written) OVER (ORDER BY j.n)
                    ELSE j.was_revision END AS new_revision,
                CASE WHEN j.verdict <> 'grant' THEN j.was_token WHEN j.kind = 'readopt' THEN j.token
                    ELSE v_base + count(*) FILTER (WHERE j.verdict = 'grant') OVER (ORDER BY j.n) END AS new_token,
                CASE j.verdict WHEN 'grant' THEN CASE j.kind WHEN 'transfer' THEN j.was_offer_to ELSE p_session END
                    WHEN 'adopt' THEN p_session WHEN 'release' THEN NULL ELSE j.was_holder END AS new_holder,
                CASE j.verdict WHEN 'grant' THEN CASE j.kind WHEN 'transfer' THEN j.receiver_node ELSE v_node END
                    WHEN 'adopt' THEN v_node WHEN 'release' THEN NULL ELSE j.was_node END AS new_node,
                j.verdict IN ('grant', 'adopt', 'release', 'withdraw', 'refuse') AS no_offer
            FROM judged j, LATERAL (
                SELECT left(j.verdict, 1) <> '!' AND j.verdict NOT IN ('unchanged', 'checkpoint') AS written OFFSET 0) w
            OFFSET 0
        ), now_ AS MATERIALIZED (
            -- The record after the change, whether it was written or not.
            SELECT d.n, d.place, d.verdict, d.written, d.kind, d.was_token, d.was_holder, d.was_factor, d.was_offer_to,
                d.live_holder, d.workload, d.unit,
                d.new_revision AS revision, d.new_token AS token,
                coalesce(d.was_factor, d.factor) AS factor,
                CASE WHEN d.verdict <> 'grant' THEN d.was_granted_by
                    WHEN d.kind = 'readopt' THEN '00000000-0000-0000-0000-000000000000'::uuid
                    ELSE d.operation END AS granted_by,
                d.new_holder AS holder, d.new_node AS node,
                CASE WHEN d.verdict = 'grant' THEN v_now ELSE d.was_taken_at END AS taken_at,
                CASE WHEN d.verdict IN ('grant', 'adopt') THEN NULL WHEN d.verdict = 'release' THEN v_now
                    ELSE d.was_freed_at END AS freed_at,
                CASE WHEN d.verdict = 'grant' AND d.kind = 'transfer' AND NOT d.was_offer_forced THEN v_now
                    ELSE d.was_moved_at END AS moved_at,
                CASE WHEN d.no_offer THEN NULL WHEN d.verdict = 'offer' THEN d.operation
                    ELSE d.was_offer_id END AS offer_id,
                CASE WHEN d.no_offer THEN NULL WHEN d.verdict = 'offer' THEN d.receiver
                    ELSE d.was_offer_to END AS offer_to,
                CASE WHEN d.no_offer THEN NULL WHEN d.verdict = 'offer' THEN v_now + d.duration
                    ELSE d.was_offer_expires_at END AS offer_expires_at,
                CASE WHEN d.no_offer THEN NULL WHEN d.verdict = 'offer' THEN d.total
                    ELSE d.was_offer_giver_total END AS offer_giver_total,
                CASE WHEN d.no_offer THEN NULL WHEN d.verdict = 'offer' THEN d.of_workload
                    ELSE d.was_offer_giver_of_workload END AS offer_giver_of_workload,
                CASE WHEN d.no_offer THEN NULL WHEN d.verdict = 'offer' THEN d.forced
                    ELSE d.was_offer_forced END AS offer_forced,
                CASE WHEN d.no_offer THEN NULL WHEN d.verdict = 'offer' THEN false WHEN d.verdict = 'accept' THEN true
                    ELSE d.was_offer_ready END AS offer_ready,
                CASE WHEN d.verdict IN ('grant', 'release') THEN NULL ELSE d.was_force END AS force,
                CASE WHEN NOT d.written THEN d.was_refusals
                    WHEN d.verdict IN ('release', 'refuse') AND d.duration IS NOT NULL
                        THEN {schema}.refusals_after(d.was_refusals, v_now, v_node, v_now + d.duration)
                    WHEN d.was_refusals IS NULL THEN NULL
                    ELSE {schema}.refusals_after(d.was_refusals, v_now, NULL, NULL) END AS refusals,
                CASE WHEN d.written OR d.verdict = 'checkpoint' THEN coalesce(d.checkpoint, d.was_checkpoint)
                    ELSE d.was_checkpoint END AS checkpoint
            FROM done d
        ), inserted AS (
            INSERT INTO {schema}.slot (cluster, {slot_columns})
            SELECT c.id, {slot_values} FROM now_ a
            WHERE a.written AND a.was_token IS NULL
        ), updated AS (
            UPDATE {schema}.slot s SET ({slot_columns}) = ROW({slot_values})
            FROM now_ a
            -- Rows move under the cluster's lock alone.
            WHERE (a.written OR a.verdict = 'checkpoint') AND s.ctid = a.place
        ), parts AS (
            SELECT a.was_holder AS id, -1 AS sign, a.was_factor * (a.was_token % 1048573 + 1) % 4294967291 AS part
            FROM now_ a
            WHERE a.written AND a.live_holder IS NOT NULL
                AND (a.was_holder, a.was_token) IS DISTINCT FROM (a.holder, a.token)
            UNION ALL
            SELECT a.holder, 1, a.factor * (a.token % 1048573 + 1) % 4294967291
            FROM now_ a
            WHERE a.written AND a.holder IS NOT NULL
                AND (a.was_holder, a.was_token) IS DISTINCT FROM (a.holder, a.token)
        ), counted AS (
            UPDATE {schema}.session s SET held_count = greatest(s.held_count + d.count, 0),
                held_digest = (s.held_digest + d.digest + 4294967291) % 4294967291
            FROM (SELECT p.id, sum(p.sign)::bigint AS count, (sum(p.sign * p.part) % 4294967291)::bigint AS digest
                FROM parts p GROUP BY p.id) d
            WHERE s.cluster = c.id AND s.id = d.id
        )
        SELECT count(*) FILTER (WHERE s.written),
            count(*) FILTER (WHERE s.verdict = 'grant' AND s.kind <> 'readopt'),
            max(s.token) FILTER (WHERE s.verdict = 'grant' AND s.kind = 'readopt'),
            count(*) FILTER (WHERE s.written AND s.was_token IS NULL),
            array_agg(DISTINCT CASE s.kind WHEN 'release' THEN '*' WHEN 'offer' THEN s.offer_to::text
                WHEN 'transfer' THEN s.was_offer_to::text ELSE s.was_holder::text END)
                FILTER (WHERE s.written AND s.kind IN ('release', 'offer', 'transfer', 'accept', 'refuse')),
            array_agg(ROW({change_item})::{schema}.answer ORDER BY s.n)
        INTO v_written, v_granted, v_adopted, v_fresh, v_hints, v_answers
        FROM now_ s;
        c.revision := c.revision + v_written;
        IF v_granted > 0 THEN
            c.token := v_base + v_granted;
        END IF;
        c.token := greatest(c.token, v_adopted);
        IF v_fresh > 0 THEN
            c := {schema}.slots_are_back(c, p_workloads[v_first:v_last], p_units[v_first:v_last]);
        END IF;
        v_all_hints := v_all_hints || v_hints;
        RETURN QUERY SELECT a.* FROM unnest(v_answers) a;
    END LOOP;
    c := {schema}.leave(c);
    IF cardinality(v_all_hints) > 64 THEN
        PERFORM pg_notify(p_channel, '*');
    ELSE
        PERFORM pg_notify(p_channel, hint) FROM (SELECT DISTINCT unnest(v_all_hints) AS hint) h WHERE hint IS NOT NULL;
    END IF;
    RETURN NEXT ROW(0, 'changed', ARRAY[c.generation],
        ARRAY[c.revision, v_now, c.token, {schema}.quiet_left(c, v_now)], NULL, NULL)::{schema}.answer;
END $$;

-- One page after a place: `p_part` is 0 at the beginning, then 1 records, 2 sessions, 3 slots. One row more than
-- `p_most` says that there is a next page.
CREATE OR REPLACE FUNCTION {schema}.snapshot(
    p_cluster text, p_generation uuid, p_token bigint, p_ttl_max bigint, p_lag bigint, p_fresh uuid, p_wait text,
    p_channel text,
    p_session uuid, p_most int, p_of uuid, p_part int, p_kind text, p_name text, p_unit int, p_id uuid
) RETURNS SETOF {schema}.answer
LANGUAGE plpgsql {guard} AS $$
DECLARE
    c {schema}.cluster;
    v_left int := p_most + 1;
    v_count int;
BEGIN
    c := {schema}.enter(p_cluster, p_generation, p_token, p_ttl_max, p_lag, p_fresh, p_wait, false);
    RETURN NEXT ROW(0, 'page', ARRAY[c.generation],
        ARRAY[c.revision, c.touched_at, c.token, {schema}.quiet_left(c, c.touched_at)], NULL, NULL)::{schema}.answer;
    IF p_of IS DISTINCT FROM c.generation AND p_part > 0 THEN
        RETURN;
    END IF;
    IF p_part <= 1 THEN
        RETURN QUERY SELECT {record_item} FROM {schema}.record r
        WHERE r.cluster = c.id AND (r.kind, r.name, r.unit) > (p_kind, p_name, p_unit)
        ORDER BY r.kind, r.name, r.unit LIMIT v_left;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        v_left := v_left - v_count;
    END IF;
    IF p_part <= 2 AND v_left > 0 THEN
        RETURN QUERY SELECT {session_item} FROM {schema}.session_info i JOIN {schema}.session x USING (cluster, id)
        WHERE i.cluster = c.id AND (p_part < 2 OR i.id > p_id) ORDER BY i.id LIMIT v_left;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        v_left := v_left - v_count;
    END IF;
    IF v_left > 0 THEN
        IF p_part < 3 THEN
            RETURN QUERY SELECT {slot_item} FROM {schema}.slot s WHERE s.cluster = c.id
            ORDER BY s.workload, s.unit LIMIT v_left;
        ELSE
            RETURN QUERY SELECT {slot_item} FROM {schema}.slot s
            WHERE s.cluster = c.id AND (s.workload, s.unit) > (p_name, p_unit) ORDER BY s.workload, s.unit LIMIT v_left;
        END IF;
    END IF;
END $$;

-- Writes or deletes an operator's record. With `p_again`, the record is gone already and more of its slots are deleted.
CREATE OR REPLACE FUNCTION {schema}.put(
    p_cluster text, p_generation uuid, p_token bigint, p_ttl_max bigint, p_lag bigint, p_fresh uuid, p_wait text,
    p_channel text,
    p_kind text, p_name text, p_unit int, p_content text, p_expect bigint, p_settings_ttl_max bigint,
    p_settings_cold bigint, p_again boolean
) RETURNS SETOF {schema}.answer
LANGUAGE plpgsql {guard} AS $$
DECLARE
    c {schema}.cluster;
    was {schema}.record;
    v_status text := 'done';
    v_count int;
BEGIN
    c := {schema}.enter(p_cluster, p_generation, p_token, p_ttl_max, p_lag, p_fresh, p_wait, true);
    SELECT * INTO was FROM {schema}.record x
    WHERE x.cluster = c.id AND x.kind = p_kind AND x.name = p_name AND x.unit = p_unit;
    IF p_again AND was.content IS NOT NULL THEN
        -- Somebody has written it again meanwhile: its slots are wanted.
        NULL;
    ELSIF p_expect IS NOT NULL AND p_expect <> coalesce(was.revision, 0) THEN
        v_status := 'refused';
    ELSIF p_content IS NOT NULL AND was.content::text = p_content THEN
        -- Writing what is there already changes nothing, so that a repeated write has the effect of one.
        NULL;
    ELSIF p_content IS NOT NULL THEN
        c.revision := c.revision + 1;
        INSERT INTO {schema}.record (cluster, kind, name, unit, revision, session_ttl_max, cold_start_hold, content)
        VALUES (c.id, p_kind, p_name, p_unit, c.revision, p_settings_ttl_max, p_settings_cold, p_content::json)
        ON CONFLICT (cluster, kind, name, unit) DO UPDATE SET revision = excluded.revision,
            session_ttl_max = excluded.session_ttl_max, cold_start_hold = excluded.cold_start_hold,
            content = excluded.content;
        DELETE FROM {schema}.tombstone t
        WHERE t.cluster = c.id AND t.kind = p_kind AND t.name = p_name AND t.unit = p_unit;
        GET DIAGNOSTICS v_count = ROW_COUNT;
        c.tombstones := c.tombstones - v_count;
        c := {schema}.leave(c);
        PERFORM pg_notify(p_channel, '*');
    ELSIF was.content IS NOT NULL OR p_kind = 'workload' THEN
        IF was.content IS NOT NULL THEN
            DELETE FROM {schema}.record x
            WHERE x.cluster = c.id AND x.kind = p_kind AND x.name = p_name AND x.unit = p_unit;
            c.revision := c.revision + 1;
            c.tombstones := c.tombstones + 1;
            INSERT INTO {schema}.tombstone (cluster, revision, kind, name, unit)
            VALUES (c.id, c.revision, p_kind, p_name, p_unit);
        END IF;
        -- The slots of a deleted workload go too, 4000 a call, but none that a live session holds, and none at all if a
        -- live session declares the workload itself.
        IF p_kind = 'workload' AND NOT EXISTS (
            SELECT FROM {schema}.session_info i WHERE i.cluster = c.id AND p_name = ANY (i.declared))
        THEN
            WITH gone AS (
                DELETE FROM {schema}.slot s WHERE s.ctid = ANY (ARRAY(
                    SELECT x.ctid FROM {schema}.slot x
                    WHERE x.cluster = c.id AND x.workload = p_name AND (x.holder IS NULL OR NOT EXISTS (
                        SELECT FROM {schema}.session h WHERE h.cluster = c.id AND h.id = x.holder))
                    ORDER BY x.unit LIMIT 4000))
                RETURNING s.unit
            )
            INSERT INTO {schema}.tombstone (cluster, revision, kind, name, unit)
            SELECT c.id, c.revision + row_number() OVER (ORDER BY gone.unit), 'slot', p_name, gone.unit FROM gone;
            GET DIAGNOSTICS v_count = ROW_COUNT;
            c.revision := c.revision + v_count;
            c.tombstones := c.tombstones + v_count;
            IF v_count = 4000 THEN
                v_status := 'more';
            END IF;
        END IF;
        c := {schema}.leave(c);
        PERFORM pg_notify(p_channel, '*');
    END IF;
    RETURN NEXT ROW(0, v_status, ARRAY[c.generation],
        ARRAY[c.revision, c.touched_at, c.token, {schema}.quiet_left(c, c.touched_at)], NULL, NULL)::{schema}.answer;
END $$;

-- An operator asks the holder of a token to let go, or with `p_now` lets go in its place.
CREATE OR REPLACE FUNCTION {schema}.force(
    p_cluster text, p_generation uuid, p_token bigint, p_ttl_max bigint, p_lag bigint, p_fresh uuid, p_wait text,
    p_channel text,
    p_workload text, p_unit int, p_of bigint, p_now boolean
) RETURNS SETOF {schema}.answer
LANGUAGE plpgsql {guard} AS $$
DECLARE
    c {schema}.cluster;
    was {schema}.slot;
    v_status text := 'done';
BEGIN
    c := {schema}.enter(p_cluster, p_generation, p_token, p_ttl_max, p_lag, p_fresh, p_wait, true);
    SELECT * INTO was FROM {schema}.slot x WHERE x.cluster = c.id AND x.workload = p_workload AND x.unit = p_unit;
    IF NOT FOUND OR was.token <> p_of THEN
        v_status := 'refused';
    ELSIF was.holder IS NOT NULL AND (p_now OR was.force IS DISTINCT FROM p_of) THEN
        c.revision := c.revision + 1;
        IF p_now THEN
            UPDATE {schema}.session x SET held_count = greatest(x.held_count - 1, 0),
                held_digest = (x.held_digest + 4294967291
                    - was.factor * (was.token % 1048573 + 1) % 4294967291) % 4294967291
            WHERE x.cluster = c.id AND x.id = was.holder;
            UPDATE {schema}.slot x SET force = p_of, revision = c.revision, holder = NULL, node = NULL,
                freed_at = c.touched_at, offer_id = NULL, offer_to = NULL, offer_expires_at = NULL,
                offer_giver_total = NULL, offer_giver_of_workload = NULL, offer_forced = NULL, offer_ready = NULL
            WHERE x.cluster = c.id AND x.workload = p_workload AND x.unit = p_unit;
        ELSE
            UPDATE {schema}.slot x SET force = p_of, revision = c.revision
            WHERE x.cluster = c.id AND x.workload = p_workload AND x.unit = p_unit;
        END IF;
        c := {schema}.leave(c);
        PERFORM pg_notify(p_channel, '*');
    END IF;
    RETURN NEXT ROW(0, v_status, ARRAY[c.generation],
        ARRAY[c.revision, c.touched_at, c.token, {schema}.quiet_left(c, c.touched_at)], NULL, NULL)::{schema}.answer;
END $$;

-- For programs that keep their own data in this database: call it in the transaction that writes, with the lease's
-- token. It fails, and the transaction with it, if a higher token of the resource has been seen; until the end of the
-- transaction no other token gets through.
CREATE OR REPLACE FUNCTION {schema}.check_token(p_resource text, p_token bigint) RETURNS void
LANGUAGE plpgsql {guard} AS $$
DECLARE
    v_seen bigint;
BEGIN
    INSERT INTO {schema}.fence AS f (resource, token) VALUES (p_resource, p_token)
    ON CONFLICT (resource) DO UPDATE SET token = excluded.token WHERE f.token <= excluded.token;
    IF NOT FOUND THEN
        -- The row is locked by now, so this is what it was refused for, or higher.
        SELECT f.token INTO v_seen FROM {schema}.fence f WHERE f.resource = p_resource;
        RAISE EXCEPTION 'the fencing token % of % is stale: another owner has written since', p_token, p_resource
            USING ERRCODE = '40001', DETAIL = v_seen::text;
    END IF;
END $$;
