-- ARGV: 9 operation, 10 incarnation, 11 replaced session, 12 ttl, 13 node, 14 info, 15 settings, 16 their longest
-- TTL, 17 their cold start hold.

local operation, incarnation, replaced, ttl, node = ARGV[9], ARGV[10], ARGV[11], tonumber(ARGV[12]), ARGV[13]

local settings = call('HGET', RECORDS, 'settings')
local index = 'node' .. SEP .. node
local other = call('HGET', SESSIONS, index)
local s = other and session(other)
if s and s.live and s.opened_by == operation then
    call('ZADD', EXPIRY, text(now + tonumber(s.ttl)), other)
    return { 'OPENED', other, s.ttl, match(settings or '', '^%d+\t(.*)$') or false, finish() }
end

local permitted = settings and (setting(settings, 'session_ttl_max') or ttl_max) or tonumber(ARGV[16])
if ttl > permitted then
    finish()
    return { 'TTL', permitted }
end
if s and s.live then
    if s.incarnation ~= incarnation or replaced ~= other then
        return { 'INUSE', other, s.incarnation, s.expires - now, finish() }
    end
    hint('*')
end
if s then
    end_session(other, node)
    sessions[other] = false
end

if not settings then
    settings = log('record' .. SEP .. 'settings') .. '\t' .. ARGV[15]
    call('HSET', RECORDS, 'settings', settings)
    ttl_max = max(ttl_max, tonumber(ARGV[16]))
    state_dirty = true
end
if cold == '1' then
    cold, state_dirty = '0', true
    local hold = setting(settings, 'cold_start_hold') or tonumber(ARGV[17])
    quiet_until = max(quiet_until, now + hold)
    if quiet() > 0 then quiet_from = now end
end

-- Revisions are never reused in a generation, nor generations: this id is fresh.
local id = string.sub(generation, 1, 16) .. string.format('%016x', revision + 1)
local changed = log('session' .. SEP .. id)
call('HSET', SESSIONS, id, write_session({
    incarnation = incarnation, ttl = text(ttl), opened_at = text(now), opened_by = operation, revision = changed,
    count = 0, digest = 0, node = node, info = ARGV[14],
}), index, id)
call('ZADD', EXPIRY, text(now + ttl), id)
return { 'OPENED', id, ttl, match(settings, '^%d+\t(.*)$'), finish() }
