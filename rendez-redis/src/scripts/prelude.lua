-- What every request begins with: the clock, the generation rule, reaping; and what they share.
-- KEYS: see keys.rs. ARGV: 1 entropy, 2 known generation, 3 known token, 4 known longest TTL, 5 allowed replica lag,
-- 6 channel of hints, 7 '1' if the request is to be refused when memory is full, 8 how far to look ahead for sessions
-- that end (or empty: the request grants or reads, and every key is looked at); the request's own from 9.
-- Numbers are doubles: tokens and times are compared as numbers and written with text(), never with `..`.
-- Functions that are needed once in a while are made only then: a heartbeat pays for each that it makes.

local META, SESSIONS, EXPIRY, SLOTS, RECORDS, LOG, CHECKPOINTS = unpack(KEYS)
local call, match, max, concat = redis.call, string.match, math.max, table.concat
local LAYOUT = '1'
local SEP = '\31'
local LIMIT = 9007199254740992
local SECOND = 1000000
local LOG_SPARE = 1000
local REAP_MAX = 100
local DUE_MAX = 64
local MODULUS = 4294967291

local function text(number) return string.format('%.0f', number) end

local clock = call('TIME')
local now = clock[1] * SECOND + clock[2]

-- The cluster's state: layout, generation, revision, token, quiet_from, quiet_until, floor, ttl_max, cold, replid,
-- ancestors.
local state = call('HGET', META, 'state')
local generation, revision, token, quiet_from, quiet_until, floor, ttl_max, cold, replid_was, ancestors
if state then
    local layout
    layout, generation, revision, token, quiet_from, quiet_until, floor, ttl_max, cold, replid_was, ancestors = match(
        state, '^(%d+) (%x+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d) (%S+)(.*)$')
    if layout ~= LAYOUT then return { 'LAYOUT', match(state, '^%S*') } end
    revision, token, quiet_from, quiet_until, floor, ttl_max = tonumber(revision), tonumber(token),
        tonumber(quiet_from), tonumber(quiet_until), tonumber(floor), tonumber(ttl_max)
else
    revision, token, quiet_from, quiet_until, floor, ttl_max, cold, replid_was, ancestors = 0, 0, 0, 0, 0, 0, '0', '-', ''
end

local known = ARGV[2]
local known_token = tonumber(ARGV[3])
if not known_token or known_token >= LIMIT or token >= LIMIT then return { 'TOKEN' } end

-- The generation rule. A generation is written into every key; in sorted sets its mark stands where no query looks.
-- A heartbeat looks at its own key and whether the others exist; who grants or reads looks at all.
local function mark(id) return SEP .. 'generation' .. SEP .. id end

local whole = generation and call('HGET', SESSIONS, 'generation') == generation
if whole then
    if ARGV[8] ~= '' then
        whole = call('EXISTS', EXPIRY, SLOTS, RECORDS, LOG, CHECKPOINTS) == 5
    else
        local m = mark(generation)
        whole = call('HGET', SLOTS, 'generation') == generation
            and call('HGET', RECORDS, 'generation') == generation
            and call('HGET', CHECKPOINTS, 'generation') == generation
            and call('ZSCORE', EXPIRY, m) and call('ZSCORE', LOG, m)
    end
end

local replid = redis.pcall('INFO', 'replication')
replid = type(replid) == 'string' and match(replid, 'master_replid:(%x+)') or '-'

local foreign = known ~= '' and known ~= generation
local trace = whole or call('EXISTS', unpack(KEYS)) > 0
local fresh = not trace and not foreign
local lost = not fresh and (not whole
    or (replid ~= '-' and replid_was ~= '-' and replid ~= replid_was)
    or (foreign and not string.find(ancestors, known, 1, true)))

-- The first write decides what happens when memory is full: after one that is allowed then, the rest of the script is
-- allowed too; one that is not ends the script before anything has changed.
if ARGV[7] == '1' then
    call('HSET', META, 'layout', LAYOUT)
else
    call('HDEL', META, '')
end

-- Sessions: incarnation, ttl, opened_at, opened_by, revision, held count, held digest, node, info.

local function read_session(record)
    local s = {}
    s.incarnation, s.ttl, s.opened_at, s.opened_by, s.revision, s.count, s.digest, s.node, s.info = match(record,
        '^(%x*)\t(%d*)\t(%d*)\t(%x*)\t(%d*)\t(%d*)\t(%d*)\t([^\t]*)\t(.*)$')
    s.count, s.digest = tonumber(s.count), tonumber(s.digest)
    return s
end

local function write_session(s)
    return concat({ s.incarnation, s.ttl, s.opened_at, s.opened_by, s.revision, text(s.count), text(s.digest), s.node,
        s.info }, '\t')
end

-- One lease's part of the digest, as Held::part computes it; every product stays below 2^53.
local function part(factor, slot_token)
    return math.fmod(tonumber(factor) * (math.fmod(slot_token, 1048573) + 1), MODULUS)
end

local function count_in(s, factor, slot_token)
    s.count = s.count + 1
    s.digest = math.fmod(s.digest + part(factor, slot_token), MODULUS)
    s.dirty = true
end

-- A duration in the cluster's settings; nothing if there are none.
local function setting(settings, name)
    local ok, micros = pcall(function()
        local t = cjson.decode(match(settings, '^%d+\t(.*)$')).settings[name]
        return t.secs * SECOND + math.ceil(t.nanos / 1000)
    end)
    return ok and micros or nil
end

local state_dirty = false

if fresh or lost or foreign or quiet_until > now then
    -- How long something from before a loss may still run.
    local function quiet_time()
        local longest = max(ttl_max, tonumber(ARGV[4]))
        -- Settings and sessions may be what was lost. In a cluster that never had any, nothing can run.
        if longest == 0 and trace and not whole then longest = 60 * SECOND end
        return math.min(longest, 24 * 3600 * SECOND) + tonumber(ARGV[5]) + SECOND
    end

    -- Keys were lost one by one, so that they do not fit together: sessions need an expiry, the expiry a session, and
    -- the counts of what they hold come from the slots that are left.
    local function mend()
        local alive, fields = {}, call('HGETALL', SESSIONS)
        for i = 1, #fields, 2 do
            local id = fields[i]
            if #id == 32 and match(id, '^%x+$') and call('ZSCORE', EXPIRY, id) then
                alive[id] = read_session(fields[i + 1])
                alive[id].count, alive[id].digest = 0, 0
            end
        end
        for _, id in ipairs(call('ZRANGEBYSCORE', EXPIRY, '-inf', '(+inf')) do
            if not alive[id] then call('ZREM', EXPIRY, id) end
        end
        fields = next(alive) and call('HGETALL', SLOTS) or {}
        for i = 1, #fields, 2 do
            local slot_token, holder, factor = match(fields[i + 1],
                '^(%d+)\t%x*\t(%x*)\t[^\t]*\t%d*\t%d*\t%d*\t[^\t]*\t%d*\t%d*\t(%d*)')
            if holder and alive[holder] then count_in(alive[holder], factor, tonumber(slot_token)) end
        end
        call('DEL', SESSIONS)
        for id, s in pairs(alive) do
            call('HSET', SESSIONS, id, write_session(s), 'node' .. SEP .. s.node, id)
        end
    end

    -- Where the clock has gone back behind the beginning of the quiet time, it is counted from there.
    if quiet_until > now and now < quiet_from then
        quiet_from, quiet_until, state_dirty = now, quiet_until - (quiet_from - now), true
    end

    if fresh or lost then
        local before = generation
        if not trace then cold = '1' end
        if lost then
            if ttl_max == 0 then
                ttl_max = setting(call('HGET', RECORDS, 'settings'), 'session_ttl_max') or 0
            end
            if trace and not whole then
                mend()
                -- Deletions are missing in the log, and records may be newer than the revision and the token that are
                -- left.
                token = max(token, now)
                local last = call('ZREVRANGE', LOG, 0, 0, 'WITHSCORES')
                revision = max(revision, last[2] and last[2] ~= '-inf' and tonumber(last[2]) or 0, now)
                floor = revision
                call('DEL', LOG)
            end
            token = math.min(max(token, known_token) + 1073741824, LIMIT - 1)
            quiet_from, quiet_until = now, max(quiet_until, now + quiet_time())
        end
        local list, seen = {}, {}
        for id in string.gmatch((before or '') .. ' ' .. known .. ' ' .. ancestors, '%x+') do
            if not seen[id] and #list < 64 then
                seen[id] = true
                list[#list + 1] = ' ' .. id
            end
        end
        ancestors = concat(list)
        generation = string.sub(redis.sha1hex(ARGV[1] .. text(now) .. replid .. (before or '')), 1, 32)
        for _, key in ipairs({ SESSIONS, SLOTS, RECORDS, CHECKPOINTS }) do
            call('HSET', key, 'generation', generation)
        end
        call('ZREMRANGEBYSCORE', EXPIRY, '+inf', '+inf')
        call('ZADD', EXPIRY, '+inf', mark(generation))
        call('ZREMRANGEBYSCORE', LOG, '-inf', '-inf')
        call('ZADD', LOG, '-inf', mark(generation))
        replid_was, state_dirty = replid, true
    elseif foreign and quiet_until > now and quiet_from + quiet_time() > quiet_until then
        -- A report from before the loss may know of a longer TTL than the store does.
        quiet_until, state_dirty = quiet_from + quiet_time(), true
    end
end
if replid ~= '-' and replid_was == '-' then replid_was, state_dirty = replid, true end

local revision_was, token_was = revision, token
token = max(token, known_token)

-- The index of changes: each record's name once, with the revision of its last change.

local logged = {}

local function log(member)
    revision = revision + 1
    local at = text(revision)
    logged[#logged + 1] = at
    logged[#logged + 1] = member
    return at
end

-- Hints are sent when all is done, each once.
local hints = {}

local function hint(payload) hints[payload] = true end

local function end_session(id, node)
    call('ZREM', EXPIRY, id)
    call('HDEL', SESSIONS, id)
    if node and call('HGET', SESSIONS, 'node' .. SEP .. node) == id then
        call('HDEL', SESSIONS, 'node' .. SEP .. node)
    end
    log('session' .. SEP .. id)
end

-- Reaping, and what ends next: one look at the expiry does for both, unless there is much to reap.
local ending = call('ZRANGEBYSCORE', EXPIRY, '-inf', text(now + (tonumber(ARGV[8]) or 0)), 'WITHSCORES', 'LIMIT', 0,
    DUE_MAX + 1)
if ending[2] and tonumber(ending[2]) <= now then
    for _, id in ipairs(call('ZRANGEBYSCORE', EXPIRY, '-inf', text(now), 'LIMIT', 0, REAP_MAX)) do
        local record = call('HGET', SESSIONS, id)
        end_session(id, record and read_session(record).node)
    end
    ending = call('ZRANGEBYSCORE', EXPIRY, '(' .. text(now), text(now + (tonumber(ARGV[8]) or 0)), 'WITHSCORES',
        'LIMIT', 0, DUE_MAX + 1)
end

-- Sessions as this request sees them: read once, written back once. What has expired is dead, reaped or not.

local sessions = {}

local function session(id)
    local s = sessions[id]
    if s == nil then
        local record = id ~= '' and call('HGET', SESSIONS, id)
        s = record and read_session(record) or false
        if s then
            s.expires = tonumber(call('ZSCORE', EXPIRY, id) or 0)
            s.live = s.expires > now
        end
        sessions[id] = s
    end
    return s
end

local function put_all(command, key, list)
    for from = 1, #list, 2000 do
        call(command, key, unpack(list, from, math.min(from + 1999, #list)))
    end
end

local function quiet() return max(quiet_until - now, 0) end

-- Writes back what has changed, and answers the stamp. Whole numbers below 2^53 are answered as they are.
local function finish()
    for id, s in pairs(sessions) do
        if s and s.dirty then call('HSET', SESSIONS, id, write_session(s)) end
    end
    if #logged > 0 then
        put_all('ZADD', LOG, logged)
        local over = call('ZCARD', LOG) - 1 - call('HLEN', SESSIONS) - call('HLEN', SLOTS) - call('HLEN', RECORDS)
            - LOG_SPARE
        if over > 0 then
            -- Rank 0 is the mark.
            floor = tonumber(call('ZRANGE', LOG, over, over, 'WITHSCORES')[2])
            call('ZREMRANGEBYRANK', LOG, 1, over)
        end
    end
    if state_dirty or revision ~= revision_was or token ~= token_was then
        call('HSET', META, 'state', concat({ LAYOUT, generation, text(revision), text(token), text(quiet_from),
            text(quiet_until), text(floor), text(ttl_max), cold, replid_was }, ' ') .. ancestors)
    end
    for payload in pairs(hints) do call('PUBLISH', ARGV[6], payload) end
    return generation, revision, now, token, quiet()
end
