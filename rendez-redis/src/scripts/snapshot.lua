-- ARGV: 9 reading session (or empty), 10 the cursor's generation, 11 its part, 12 its place; or three times empty.

local PAGE = 500
local stamp = { finish() }
if ARGV[10] ~= '' and ARGV[10] ~= generation then return { 'CURSOR', unpack(stamp) } end

local parts = { 'session', 'slot', 'record' }
local keys = { session = SESSIONS, slot = SLOTS, record = RECORDS }
local part_at, place = tonumber(ARGV[11]) or 1, ARGV[12] ~= '' and ARGV[12] or '0'
local items = {}
local reader = ARGV[9]
local asked = 0

while part_at <= #parts and asked < PAGE do
    local kind = parts[part_at]
    local page = call('HSCAN', keys[kind], place, 'COUNT', PAGE)
    place = page[1]
    local list = page[2]
    -- Scanning may answer less than asked and even nothing: count what was looked at.
    asked = asked + max(#list / 2, place == '0' and 0 or PAGE)
    for i = 1, #list, 2 do
        local field, record = list[i], list[i + 1]
        if field ~= 'generation' and not (kind == 'session' and string.find(field, SEP, 1, true)) then
            local checkpoint = false
            if kind == 'slot' and reader ~= '' and match(record, '^%d+\t%x*\t(%x*)') == reader then
                checkpoint = call('HGET', CHECKPOINTS, field)
            end
            items[#items + 1] = kind .. SEP .. field
            items[#items + 1] = record
            items[#items + 1] = checkpoint
        end
    end
    if place == '0' then part_at = part_at + 1 end
end

local more = part_at <= #parts
return { 'PAGE', items, more and part_at or false, more and place or false, unpack(stamp) }
