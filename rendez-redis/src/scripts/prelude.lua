-- What every request begins with: the clock, the generation rule, reaping; and what they share.
-- KEYS: see keys.rs. ARGV: 1 entropy, 2 known generation, 3 known token, 4 known longest TTL, 5 allowed replica lag,
-- 6 channel of hints, 7 whether the request may be refused when memory is full; the request's own from 8.
-- Numbers are doubles: tokens and times are compared as numbers and written with text(), never with `..`.

local META, SESSIONS, EXPIRY, SLOTS, RECORDS, LOG, CHECKPOINTS = unpack(KEYS)
local call, format, match, max, concat = redis.call, string.format, string.match, math.max, table.concat
local LAYOUT = '1'
local SEP = '\31'
local LIMIT = 9007199254740992
local GENERATION_STEP = 1073741824
local SECOND = 1000000
local ANCESTORS_MAX = 64
local LONGEST = 24 * 3600 * SECOND
local REAP_MAX = 100
local LOG_SPARE = 1000
local REFUSALS_MAX = 16
local TTL_MAX_UNKNOWN = 60 * SECOND

local function text(number) return format('%.0f', number) end

local clock = call('TIME')
local now = tonumber(clock[1]) * SECOND + tonumber(clock[2])

local meta = call('HMGET', META, 'layout', 'generation', 'revision', 'token', 'quiet_until', 'floor', 'ttl_max',
    'replid', 'ancestors', 'cold', 'quiet_from')
if meta[1] and meta[1] ~= LAYOUT then return { 'LAYOUT', meta[1] } end

local generation = meta[2]
local revision = tonumber(meta[3]) or 0
local token = tonumber(meta[4]) or 0
local quiet_until = tonumber(meta[5]) or 0
local floor = tonumber(meta[6]) or 0
local ttl_max = tonumber(meta[7]) or 0
local replid_was = meta[8] or ''
local ancestors = meta[9] or ''
local cold = meta[10]
local quiet_from = tonumber(meta[11]) or 0

local known = ARGV[2]
local known_token = tonumber(ARGV[3])
if not known_token or known_token >= LIMIT or token >= LIMIT then return { 'TOKEN' } end

-- Sessions: incarnation, ttl, opened_at, opened_by, revision, held count, held digest, node, info.

local function read_session(record)
    local s = {}
    s.incarnation, s.ttl, s.opened_at, s.opened_by, s.revision, s.count, s.digest, s.node, s.info = match(record,
        '^(%x*)\t(%d*)\t(%d*)\t(%x*)\t(%d*)\t(%d*)\t(%d*)\t([^\t]*)\t(.*)$')
    s.count, s.digest = tonumber(s.count), tonumber(s.digest)
    return s
end

local function write_session(s)
    return concat({ s.incarnation, s.ttl, s.opened_at, s.opened_by, s.revision, text(s.count), text(s.digest),
        s.node, s.info }, '\t')
end

-- Slots: token, granted_by, holder, node, taken_at, freed_at, moved_at, offer, force, revision, factor, refusals.

local SLOT = '^(%d+)\t(%x*)\t(%x*)\t([^\t]*)\t(%d*)\t(%d*)\t(%d*)\t([^\t]*)\t(%d*)\t(%d*)\t(%d*)(.*)$'

local function read_slot(record)
    local s = {}
    s.token, s.granted_by, s.holder, s.node, s.taken_at, s.freed_at, s.moved_at, s.offer, s.force, s.revision,
        s.factor, s.refusals = match(record, SLOT)
    s.token = tonumber(s.token)
    return s
end

local function write_slot(s)
    return concat({ text(s.token), s.granted_by, s.holder, s.node, s.taken_at, s.freed_at, s.moved_at, s.offer,
        s.force, s.revision, s.factor }, '\t') .. s.refusals
end

-- The digest of what a session holds, computed as Held::part computes it; every product stays below 2^53.

local MODULUS = 4294967291

local function part(factor, slot_token)
    return math.fmod(tonumber(factor) * (math.fmod(slot_token, 1048573) + 1), MODULUS)
end

local function count_in(s, factor, slot_token)
    s.count = s.count + 1
    s.digest = math.fmod(s.digest + part(factor, slot_token), MODULUS)
    s.dirty = true
end

local function count_out(s, factor, slot_token)
    s.count = max(s.count - 1, 0)
    s.digest = math.fmod(s.digest + MODULUS - part(factor, slot_token), MODULUS)
    s.dirty = true
end

-- The longest TTL that the cluster's settings permit; nothing if there are none.
local function setting(settings, name)
    local ok, micros = pcall(function()
        local t = cjson.decode(match(settings, '^%d+\t(.*)$')).settings[name]
        return t.secs * SECOND + math.ceil(t.nanos / 1000)
    end)
    return ok and micros or nil
end

local function permitted_ttl(settings) return setting(settings, 'session_ttl_max') end

-- The generation rule. A generation is written into every key; the mark stands in sorted sets where no query looks.

local function mark(id) return SEP .. 'generation' .. SEP .. id end

local function intact()
    if not generation then return false end
    local m = mark(generation)
    return call('HGET', SESSIONS, 'generation') == generation
        and call('HGET', SLOTS, 'generation') == generation
        and call('HGET', RECORDS, 'generation') == generation
        and call('HGET', CHECKPOINTS, 'generation') == generation
        and call('ZSCORE', EXPIRY, m) and call('ZSCORE', LOG, m) and true
end

local replid = ''
do
    local info = redis.pcall('INFO', 'replication')
    if type(info) == 'string' then replid = match(info, 'master_replid:(%x+)') or '' end
end

local whole = intact()
local foreign = known ~= '' and known ~= generation
local trace = whole or call('EXISTS', unpack(KEYS)) > 0
local fresh = not trace and not foreign
local lost = not fresh and (not whole
    or (replid ~= '' and replid_was ~= '' and replid ~= replid_was)
    or (foreign and not string.find(ancestors, known, 1, true)))

-- The first write decides what happens when memory is full: after one that is allowed then, the rest of the script is
-- allowed too; one that is not ends the script before anything has changed.
if ARGV[7] == '1' then
    call('HSET', META, 'layout', LAYOUT)
else
    call('HDEL', META, '')
end

-- Keys were lost one by one, so that they do not fit together: sessions need an expiry, the expiry a session, and the
-- counts of what they hold come from the slots that are left.
local function mend()
    local sessions, fields = {}, call('HGETALL', SESSIONS)
    for i = 1, #fields, 2 do
        local id = fields[i]
        if #id == 32 and match(id, '^%x+$') and call('ZSCORE', EXPIRY, id) then
            local s = read_session(fields[i + 1])
            s.count, s.digest = 0, 0
            sessions[id] = s
        end
    end
    for _, id in ipairs(call('ZRANGEBYSCORE', EXPIRY, '-inf', '(+inf')) do
        if not sessions[id] then call('ZREM', EXPIRY, id) end
    end
    fields = next(sessions) and call('HGETALL', SLOTS) or {}
    for i = 1, #fields, 2 do
        if fields[i] ~= 'generation' then
            local slot = read_slot(fields[i + 1])
            local s = sessions[slot.holder]
            if s then count_in(s, slot.factor, slot.token) end
        end
    end
    call('DEL', SESSIONS)
    for id, s in pairs(sessions) do
        call('HSET', SESSIONS, id, write_session(s), 'node' .. SEP .. s.node, id)
    end
end

-- How long something from before a loss may still run.
local function quiet_time()
    local longest = max(ttl_max, tonumber(ARGV[4]))
    -- Settings and sessions may be what was lost. In a cluster that never had any, nothing can run.
    if longest == 0 and trace and not whole then longest = TTL_MAX_UNKNOWN end
    return math.min(longest, LONGEST) + tonumber(ARGV[5]) + SECOND
end

local function write_quiet()
    call('HSET', META, 'quiet_from', text(quiet_from), 'quiet_until', text(quiet_until))
end

-- Where the clock has gone back behind the beginning of the quiet time, it is counted from there.
if quiet_until > 0 and now < quiet_from then
    quiet_until = quiet_until - (quiet_from - now)
    quiet_from = now
    write_quiet()
end

if fresh or lost then
    local before = generation
    if not trace then cold = '1' end
    if lost then
        if ttl_max == 0 then
            ttl_max = permitted_ttl(call('HGET', RECORDS, 'settings')) or 0
        end
        if trace and not whole then
            mend()
            -- Deletions are missing in the log, and records may be newer than the revision and the token that are left.
            token = max(token, now)
            local last = call('ZREVRANGE', LOG, 0, 0, 'WITHSCORES')
            revision = max(revision, last[2] and last[2] ~= '-inf' and tonumber(last[2]) or 0, now)
            floor = revision
            call('DEL', LOG)
        end
        token = math.min(max(token, known_token) + GENERATION_STEP, LIMIT - 1)
        quiet_from, quiet_until = now, max(quiet_until, now + quiet_time())
    end
    local list, seen = {}, {}
    for id in string.gmatch((before or '') .. ' ' .. known .. ' ' .. ancestors, '%x+') do
        if not seen[id] and #list < ANCESTORS_MAX then
            seen[id] = true
            list[#list + 1] = id
        end
    end
    ancestors = concat(list, ' ')
    generation = string.sub(redis.sha1hex(ARGV[1] .. text(now) .. replid .. (before or '')), 1, 32)
    for _, key in ipairs({ SESSIONS, SLOTS, RECORDS, CHECKPOINTS }) do
        call('HSET', key, 'generation', generation)
    end
    call('ZREMRANGEBYSCORE', EXPIRY, '+inf', '+inf')
    call('ZADD', EXPIRY, '+inf', mark(generation))
    call('ZREMRANGEBYSCORE', LOG, '-inf', '-inf')
    call('ZADD', LOG, '-inf', mark(generation))
    call('HSET', META, 'layout', LAYOUT, 'generation', generation, 'revision', text(revision), 'token', text(token),
        'floor', text(floor), 'ttl_max', text(ttl_max), 'replid', replid, 'ancestors', ancestors)
    write_quiet()
    if cold then call('HSET', META, 'cold', cold) end
else
    if replid ~= '' and replid_was == '' then call('HSET', META, 'replid', replid) end
    -- A report from before the loss may know of a longer TTL than the store does.
    if foreign and quiet_until > now and quiet_from + quiet_time() > quiet_until then
        quiet_until = quiet_from + quiet_time()
        write_quiet()
    end
end

local revision_was, token_was, floor_was = revision, token, floor
token = max(token, known_token)

local function quiet() return max(quiet_until - now, 0) end

-- The index of changes: each record's name once, with the revision of its last change.

local logged = {}

local function log(member)
    revision = revision + 1
    logged[#logged + 1] = text(revision)
    logged[#logged + 1] = member
    return text(revision)
end

local function hint(payload) call('PUBLISH', ARGV[6], payload) end

local function end_session(id, node)
    call('ZREM', EXPIRY, id)
    call('HDEL', SESSIONS, id)
    if node and call('HGET', SESSIONS, 'node' .. SEP .. node) == id then
        call('HDEL', SESSIONS, 'node' .. SEP .. node)
    end
    log('session' .. SEP .. id)
end

for _, id in ipairs(call('ZRANGEBYSCORE', EXPIRY, '-inf', text(now), 'LIMIT', 0, REAP_MAX)) do
    local record = call('HGET', SESSIONS, id)
    end_session(id, record and read_session(record).node)
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

local function live(id)
    local s = session(id)
    return s and s.live
end

local function put_all(command, key, pairs_list)
    for from = 1, #pairs_list, 2000 do
        call(command, key, unpack(pairs_list, from, math.min(from + 1999, #pairs_list)))
    end
end

-- Writes back what has changed, and answers the stamp.
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
    if revision ~= revision_was or token ~= token_was or floor ~= floor_was then
        call('HSET', META, 'revision', text(revision), 'token', text(token), 'floor', text(floor))
    end
    return generation, text(revision), text(now), text(token), text(quiet())
end
