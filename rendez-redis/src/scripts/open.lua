-- ARGV: 8 operation, 9 incarnation, 10 replaced session, 11 ttl, 12 node, 13 info, 14 settings, 15 their longest
-- TTL, 16 their cold start hold.

local operation, incarnation, replaced, ttl, node = ARGV[8], ARGV[9], ARGV[10], tonumber(ARGV[11]), ARGV[12]

local settings = call('HGET', RECORDS, 'settings')
local index = 'node' .. SEP .. node
local other = call('HGET', SESSIONS, index)
local s = other and session(other)
if s and s.live and s.opened_by == operation then
    call('ZADD', EXPIRY, text(now + tonumber(s.ttl)), other)
    return { 'OPENED', other, s.ttl, match(settings or '', '^%d+\t(.*)$') or false, finish() }
end

local permitted = settings and (permitted_ttl(settings) or ttl_max) or tonumber(ARGV[15])
if ttl > permitted then
    finish()
    return { 'TTL', text(permitted) }
end
if s and s.live then
    if s.incarnation ~= incarnation or replaced ~= other then
        return { 'INUSE', other, s.incarnation, text(s.expires - now), finish() }
    end
    hint('*')
end
if s then
    end_session(other, node)
    sessions[other] = false
end

if not settings then
    settings = log('record' .. SEP .. 'settings') .. '\t' .. ARGV[14]
    call('HSET', RECORDS, 'settings', settings)
    ttl_max = max(ttl_max, tonumber(ARGV[15]))
    call('HSET', META, 'ttl_max', text(ttl_max))
end
if cold then
    call('HDEL', META, 'cold')
    local hold = setting(settings, 'cold_start_hold') or tonumber(ARGV[16])
    quiet_until = max(quiet_until, now + hold)
    if quiet() > 0 then
        quiet_from = now
        write_quiet()
    end
end

-- Revisions are never reused in a generation, nor generations: this id is fresh.
local id = string.sub(generation, 1, 16) .. format('%016x', revision + 1)
local changed = log('session' .. SEP .. id)
call('HSET', SESSIONS, id, write_session({
    incarnation = incarnation, ttl = text(ttl), opened_at = text(now), opened_by = operation, revision = changed,
    count = 0, digest = 0, node = node, info = ARGV[13],
}), index, id)
call('ZADD', EXPIRY, text(now + ttl), id)
return { 'OPENED', id, text(ttl), match(settings, '^%d+\t(.*)$'), finish() }
