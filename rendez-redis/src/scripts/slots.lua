-- Slots, for the requests that change them: token, granted_by, holder, node, taken_at, freed_at, moved_at, offer, force,
-- revision, factor, refusals.

local function read_slot(record)
    local s = {}
    s.token_text, s.granted_by, s.holder, s.node, s.taken_at, s.freed_at, s.moved_at, s.offer, s.force, s.revision,
        s.factor, s.refusals = match(record,
        '^(%d+)\t(%x*)\t(%x*)\t([^\t]*)\t(%d*)\t(%d*)\t(%d*)\t([^\t]*)\t(%d*)\t(%d*)\t(%d*)(.*)$')
    s.token = tonumber(s.token_text)
    return s
end

-- One long `..` is several times faster than table.concat, and so is a number that was made text once.
local function write_slot(s)
    return s.token_text .. '\t' .. s.granted_by .. '\t' .. s.holder .. '\t' .. s.node .. '\t' .. s.taken_at .. '\t'
        .. s.freed_at .. '\t' .. s.moved_at .. '\t' .. s.offer .. '\t' .. s.force .. '\t' .. s.revision .. '\t'
        .. s.factor .. s.refusals
end

local function count_out(s, factor, slot_token)
    s.count = max(s.count - 1, 0)
    s.digest = math.fmod(s.digest + MODULUS - part(factor, slot_token), MODULUS)
    s.dirty = true
end

local function live(id)
    local s = session(id)
    return s and s.live
end
