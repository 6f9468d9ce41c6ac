-- ARGV: 9 session, 10 since (or empty), 11 most changes, 12 node and 13 info (or both empty).

local id, since, changes_max = ARGV[9], tonumber(ARGV[10]), tonumber(ARGV[11])

-- Only what a heartbeat needs is read from the record: the rest of it is most of it.
local record = call('HGET', SESSIONS, id)
local expires = record and call('ZSCORE', EXPIRY, id)
if not expires or tonumber(expires) <= now then return { 'LOST', finish() } end
local ttl, count, digest = match(record, '^%x*\t(%d*)\t%d*\t%x*\t%d*\t(%d*)\t(%d*)\t')

local info = ARGV[13]
local s = info ~= '' and session(id)
if s and ARGV[12] ~= s.node then
    finish()
    return { 'NODE', s.node }
end

-- First what must happen, then what is only read.
call('ZADD', EXPIRY, text(now + tonumber(ttl)), id)
if s and info ~= s.info then
    s.info, s.dirty = info, true
    s.revision = log('session' .. SEP .. id)
    hint('*')
end
local stamp = { finish() }

local sync, up_to, more, changes = 'NONE', '', '', {}
if since then
    if known ~= generation or since < floor or since > revision then
        sync = 'SNAPSHOT'
    else
        sync, up_to = 'CHANGES', text(revision)
        local members = since < revision
            and call('ZRANGEBYSCORE', LOG, '(' .. text(since), '+inf', 'WITHSCORES', 'LIMIT', 0, changes_max + 1) or {}
        local found = #members / 2
        if found > changes_max then
            found, more = changes_max, '1'
            up_to = found > 0 and members[2 * found] or text(since)
        end
        for i = 1, found do
            local member = members[2 * i - 1]
            local kind, field = match(member, '^(%a+)' .. SEP .. '(.*)$')
            local record, checkpoint = false, false
            if kind == 'slot' then
                record = call('HGET', SLOTS, field)
                if record and match(record, '^%d+\t%x*\t(%x*)') == id then
                    checkpoint = call('HGET', CHECKPOINTS, field)
                end
            elseif kind == 'session' then
                record = call('HGET', SESSIONS, field)
            else
                record = call('HGET', RECORDS, field)
            end
            changes[#changes + 1] = member
            changes[#changes + 1] = record
            changes[#changes + 1] = checkpoint
        end
    end
end

local due = {}
for i = 1, #ending, 2 do
    if ending[i] ~= id and #due < 2 * DUE_MAX then
        due[#due + 1] = ending[i]
        due[#due + 1] = ending[i + 1] - now
    end
end

return { 'BEAT', ttl, count, digest, sync, up_to, more, changes, due, unpack(stamp) }
