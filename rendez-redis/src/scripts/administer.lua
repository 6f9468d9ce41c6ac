-- ARGV: 9 'put', 10 record's name, 11 whether there is content, 12 content, 13 expected revision (or empty), 14 longest
-- TTL if these are settings (or empty), 15 the deleted workload (or empty), 16 place in their scan;
-- or 9 'force', 10 slot, 11 token, 12 '1' for now.

if ARGV[9] == 'force' then
    local field = ARGV[10]
    local record = call('HGET', SLOTS, field)
    local slot = record and read_slot(record)
    if not slot or slot.token ~= tonumber(ARGV[11]) then return { 'REFUSED', finish() } end
    if slot.holder == '' then return { 'DONE', false, finish() } end
    if ARGV[12] == '1' then
        local holder = session(slot.holder)
        if holder then count_out(holder, slot.factor, slot.token) end
        slot.holder, slot.node, slot.freed_at, slot.offer = '', '', text(now), ''
    elseif slot.force == ARGV[11] then
        return { 'DONE', false, finish() }
    end
    slot.force = ARGV[11]
    slot.revision = log('slot' .. SEP .. field)
    call('HSET', SLOTS, field, write_slot(slot))
    hint('*')
    return { 'DONE', false, finish() }
end

local field, expected, place = ARGV[10], tonumber(ARGV[13]), ARGV[16]
if place == '' then
    local record = call('HGET', RECORDS, field)
    local at = record and tonumber(match(record, '^(%d+)\t')) or 0
    if expected and expected ~= at then return { 'REFUSED', finish() } end
    if ARGV[11] == '1' then
        -- Writing what is there already changes nothing, so that a repeated write has the effect of one.
        if record and match(record, '^%d+\t(.*)$') == ARGV[12] then return { 'DONE', false, finish() } end
        call('HSET', RECORDS, field, log('record' .. SEP .. field) .. '\t' .. ARGV[12])
        if ARGV[14] ~= '' then
            -- Not below the longest TTL of a session that may still live: the quiet time is counted from it.
            ttl_max = tonumber(ARGV[14])
            local list = call('HGETALL', SESSIONS)
            for i = 1, #list, 2 do
                if #list[i] == 32 and match(list[i], '^%x+$') then
                    ttl_max = max(ttl_max, tonumber(read_session(list[i + 1]).ttl))
                end
            end
            state_dirty = true
        end
        hint('*')
        return { 'DONE', false, finish() }
    end
    if record then
        call('HDEL', RECORDS, field)
        log('record' .. SEP .. field)
    end
    if record or ARGV[15] ~= '' then hint('*') end
    place = '0'
end

-- A workload was deleted: its slots go too, a page a call, but none that a live session holds, and none at all if a
-- live session declares the workload itself.
local workload = ARGV[15]
if workload == '' then return { 'DONE', false, finish() } end
if place == '0' then
    local list = call('HGETALL', SESSIONS)
    for i = 1, #list, 2 do
        if #list[i] == 32 and live(list[i]) then
            local declared = cjson.decode(session(list[i]).info).workloads
            if declared and declared[workload] then return { 'DONE', false, finish() } end
        end
    end
end
local pattern = string.gsub(workload .. SEP, '[\\*?%[%]]', '\\%0') .. '*'
local page = call('HSCAN', SLOTS, place, 'MATCH', pattern, 'COUNT', 500)
local doomed = {}
for i = 1, #page[2], 2 do
    local slot = read_slot(page[2][i + 1])
    if not live(slot.holder) then
        token = max(token, slot.token)
        doomed[#doomed + 1] = page[2][i]
    end
end
local function unit(name) return tonumber(match(name, '(%d+)$')) end
table.sort(doomed, function(a, b) return unit(a) < unit(b) end)
for _, name in ipairs(doomed) do
    call('HDEL', SLOTS, name)
    call('HDEL', CHECKPOINTS, name)
    log('slot' .. SEP .. name)
end
return { 'DONE', page[1] ~= '0' and page[1] or false, finish() }
