-- ARGV: 9 session, then eight for each change: kind, slot, factor, token, and four that depend on the kind.

local id = ARGV[9]
local actor = session(id)
if not (actor and actor.live) then return { 'LOST', finish() } end

local now_text = text(now)
local REFUSALS_MAX = 16
local WIDTH = 8
local first = 10
if max(token, now) > LIMIT - 1 - (#ARGV - first + 1) / WIDTH then
    finish()
    return { 'TOKEN' }
end

-- All slots are read at once, and written at once. A record stays text until it is looked at, and the first grant of a
-- slot makes text and nothing else: tables for hundreds of slots are most of what a batch costs.
local fields = {}
for at = first, #ARGV, WIDTH do fields[#fields + 1] = ARGV[at + 1] end
local slots, checkpoints, changed, saved = {}, {}, {}, {}
for i, record in ipairs(#fields > 0 and call('HMGET', SLOTS, unpack(fields)) or {}) do
    slots[fields[i]] = record
end
if #fields > 0 and call('HLEN', CHECKPOINTS) > 1 then
    for i, checkpoint in ipairs(call('HMGET', CHECKPOINTS, unpack(fields))) do
        checkpoints[fields[i]] = checkpoint
    end
end

local function slot_of(field)
    local slot = slots[field]
    if type(slot) == 'string' then
        slot = read_slot(slot)
        slots[field] = slot
    end
    return slot
end

local function save(field, checkpoint)
    checkpoints[field] = checkpoint
    saved[field] = true
end

-- Keeps the refusals that have not ended, and adds one for `duration` if that is given.
local function renew_refusals(slot, node, duration)
    local kept = {}
    for ends, who in string.gmatch(slot.refusals, '\t(%d+) ([^\t]*)') do
        if who ~= node and tonumber(ends) > now then kept[#kept + 1] = { tonumber(ends), who } end
    end
    if duration then kept[#kept + 1] = { now + duration, node } end
    while #kept > REFUSALS_MAX do
        local soonest = 1
        for i = 2, #kept do
            if kept[i][1] < kept[soonest][1] then soonest = i end
        end
        table.remove(kept, soonest)
    end
    local texts = {}
    for i, refusal in ipairs(kept) do texts[i] = '\t' .. text(refusal[1]) .. ' ' .. refusal[2] end
    slot.refusals = concat(texts)
end

local function touch(field)
    if slots[field].refusals ~= '' then renew_refusals(slots[field]) end
    slots[field].revision = log('slot' .. SEP .. field)
    changed[field] = true
end

local function grant(field, slot, factor, to, operation)
    local previous = slot.holder ~= '' and session(slot.holder)
    if previous then count_out(previous, slot.factor, slot.token) end
    token = max(slot.token, token, now) + 1
    local holder = session(to)
    slot.token, slot.token_text, slot.factor, slot.granted_by = token, text(token), factor, operation
    slot.holder, slot.node = to, holder.node
    slot.taken_at, slot.freed_at, slot.offer, slot.force = now_text, '', '', ''
    count_in(holder, factor, token)
    touch(field)
end

local function fresh_slot(factor)
    return { token = 0, token_text = '0', granted_by = '', holder = '', node = '', taken_at = '', freed_at = '', moved_at = '',
        offer = '', force = '', revision = '', factor = factor, refusals = '' }
end

local is_quiet = quiet() > 0
local after_first_grant = '\t' .. id .. '\t' .. actor.node .. '\t' .. now_text .. '\t\t\t\t\t'

local function grant_first(field, factor, operation)
    token = max(token, now) + 1
    count_in(actor, factor, token)
    slots[field] = text(token) .. '\t' .. operation .. after_first_grant .. log('slot' .. SEP .. field) .. '\t' .. factor
    changed[field] = true
end

-- Each answers nothing when it is done, or the conflict.
local kinds = {}

local function offer_of(slot)
    local o = {}
    o.id, o.to, o.expires_at, o.total, o.of_workload, o.forced, o.ready = match(slot and slot.offer or '',
        '^(%x+) (%x+) (%d+) (%d+) (%d+) (%d) (%d)$')
    return o.id and o or nil
end

local function mine(slot, wanted)
    if (slot and slot.token or 0) ~= wanted then return 'token' end
    if not slot or slot.holder ~= id then return 'not_holder' end
end

function kinds.acquire(field, factor, wanted, operation)
    if is_quiet then return 'quiet' end
    local slot = slot_of(field)
    if not slot then
        if wanted ~= 0 then return 'token' end
        return grant_first(field, factor, operation)
    end
    if slot.granted_by == operation and slot.holder == id then return end
    if slot.token ~= wanted then return 'token' end
    if slot.holder ~= id and live(slot.holder) then return 'held' end
    grant(field, slot, factor, id, operation)
end

function kinds.release(field, factor, wanted, has_checkpoint, checkpoint, duration)
    local slot = slot_of(field)
    if (slot and slot.token or 0) ~= wanted then return 'token' end
    if not slot or slot.holder == '' then return end
    if slot.holder ~= id then return 'not_holder' end
    count_out(actor, slot.factor, slot.token)
    slot.holder, slot.node, slot.freed_at, slot.offer, slot.force = '', '', now_text, '', ''
    if has_checkpoint == '1' then save(field, checkpoint) end
    if duration ~= '' then renew_refusals(slot, actor.node, tonumber(duration)) end
    touch(field)
    hint('*')
end

function kinds.offer(field, factor, wanted, operation, to, duration, rest)
    local slot = slot_of(field)
    local conflict = mine(slot, wanted)
    if conflict then return conflict end
    local stands = offer_of(slot)
    if stands and stands.id == operation then return end
    if to == id or not live(to) then return 'receiver_gone' end
    slot.offer = operation .. ' ' .. to .. ' ' .. text(now + tonumber(duration)) .. ' ' .. rest .. ' 0'
    touch(field)
    hint(to)
end

function kinds.withdraw(field, factor, wanted, offer)
    local slot = slot_of(field)
    local conflict = mine(slot, wanted)
    if conflict then return conflict end
    local stands = offer_of(slot)
    if stands and stands.id == offer then
        slot.offer = ''
        touch(field)
    end
end

local function offered(field, wanted, offer)
    local slot = slot_of(field)
    if (slot and slot.token or 0) ~= wanted then return 'token' end
    local stands = offer_of(slot)
    if not stands or stands.id ~= offer or stands.to ~= id or tonumber(stands.expires_at) <= now then return 'offer' end
end

function kinds.accept(field, factor, wanted, offer)
    local conflict = offered(field, wanted, offer)
    if conflict then return conflict end
    local slot = slot_of(field)
    if string.sub(slot.offer, -1) ~= '1' then
        slot.offer = string.sub(slot.offer, 1, -2) .. '1'
        touch(field)
        hint(slot.holder)
    end
end

function kinds.refuse(field, factor, wanted, offer, duration)
    local conflict = offered(field, wanted, offer)
    if conflict then return conflict end
    local slot = slot_of(field)
    slot.offer = ''
    renew_refusals(slot, actor.node, tonumber(duration))
    touch(field)
    hint(slot.holder)
end

function kinds.transfer(field, factor, wanted, operation, offer, has_checkpoint, checkpoint)
    if is_quiet then return 'quiet' end
    local slot = slot_of(field)
    if slot and slot.granted_by == operation then return end
    local conflict = mine(slot, wanted)
    if conflict then return conflict end
    local stands = offer_of(slot)
    if not stands or stands.id ~= offer then return 'offer' end
    if not live(stands.to) then return 'receiver_gone' end
    if tonumber(stands.expires_at) <= now or stands.ready ~= '1' then return 'offer' end
    grant(field, slot, factor, stands.to, operation)
    if stands.forced ~= '1' then slot.moved_at = now_text end
    if has_checkpoint == '1' then save(field, checkpoint) end
    hint(stands.to)
end

function kinds.checkpoint(field, factor, wanted, checkpoint)
    local conflict = mine(slot_of(field), wanted)
    if conflict then return conflict end
    save(field, checkpoint)
end

function kinds.readopt(field, factor, wanted)
    local slot = slot_of(field)
    if wanted == 0 or wanted >= LIMIT or wanted < (slot and slot.token or 0) then return 'token' end
    if slot and wanted == slot.token then
        -- Without a holder it was let go: a late copy of a re-adoption must not bring it back.
        if slot.holder == '' then return 'not_holder' end
        if slot.node ~= actor.node then return 'held' end
    end
    if quiet() == 0 or known ~= generation then return 'not_quiet' end
    if slot and wanted == slot.token and slot.holder == id then return end
    if not slot then
        slot = fresh_slot(factor)
        slots[field] = slot
    end
    local previous = slot.holder ~= '' and session(slot.holder)
    if previous then count_out(previous, slot.factor, slot.token) end
    if wanted ~= slot.token then
        -- No request has granted this token in this generation.
        slot.granted_by, slot.taken_at, slot.force = string.rep('0', 32), now_text, ''
    end
    slot.token, slot.token_text, slot.factor, slot.holder, slot.node = wanted, text(wanted), factor, id, actor.node
    slot.freed_at, slot.offer = '', ''
    token = max(token, wanted)
    count_in(actor, factor, wanted)
    touch(field)
end

local outcomes, texts = {}, {}
for at = first, #ARGV, WIDTH do
    local field, wanted = ARGV[at + 1], tonumber(ARGV[at + 3])
    local conflict = kinds[ARGV[at]](field, ARGV[at + 2], wanted, unpack(ARGV, at + 4, at + 7))
    local granted_first = changed[field] and type(slots[field]) == 'string'
    local slot = granted_first and slots[field] or slot_of(field)
    outcomes[#outcomes + 1] = conflict or 'done'
    texts[field] = granted_first and slot or slot and write_slot(slot) or false
    outcomes[#outcomes + 1] = texts[field]
    outcomes[#outcomes + 1] = slot and (granted_first or slot.holder == id) and checkpoints[field] or false
end
local writes = {}
for field in pairs(changed) do
    writes[#writes + 1] = field
    writes[#writes + 1] = texts[field]
end
put_all('HSET', SLOTS, writes)
for field in pairs(saved) do call('HSET', CHECKPOINTS, field, checkpoints[field]) end
return { 'CHANGED', outcomes, finish() }
