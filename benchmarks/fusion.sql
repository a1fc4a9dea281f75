-- Ingest and fuse of the clinic of benchmarks/raw.py, written by hand for DuckDB: the same rules, the same tables.
-- {raw} and {out} are folders, {buckets} a number. pseudonyms(who, patient_id) holds one HMAC per different id, as ingest makes them.
-- Statements are separated by lines of dashes.

-- what each kind of record is: plausible range, conversion of the declared unit, place in the file
CREATE TEMP VIEW numbers AS
SELECT who, taken, glucose AS number, unit, 'glucose' AS name, 'clinic.cgm' AS source, 20.0 AS low, 600.0 AS high,
    CASE unit WHEN 'mg/dL' THEN 1.0 WHEN 'mmol/L' THEN 18.0156 END AS factor, 0.0 AS shift, filename, file_row_number + 1 AS line, [1.0, 18.0156] AS meant, [0.0, 0.0] AS moved
FROM read_parquet('{raw}/cgm/*.parquet', filename = true, file_row_number = true)
UNION ALL BY NAME
SELECT who, taken, result AS number, unit, 'hba1c' AS name, 'clinic.labs.a1c' AS source, 3.0 AS low, 20.0 AS high,
    CASE unit WHEN '%' THEN 1.0 WHEN 'mmol/mol' THEN 0.09148 END AS factor, CASE unit WHEN 'mmol/mol' THEN 2.152 ELSE 0.0 END AS shift,
    filename, file_row_number + 1 AS line, [1.0, 0.09148] AS meant, [0.0, 2.152] AS moved
FROM read_parquet('{raw}/labs/*.parquet', filename = true, file_row_number = true) WHERE test = 'a1c'
UNION ALL BY NAME
SELECT who, taken, result AS number, unit, 'body_weight' AS name, 'clinic.labs.weight' AS source, 0.3 AS low, 500.0 AS high,
    CASE unit WHEN 'kg' THEN 1.0 WHEN 'g' THEN 0.001 WHEN 'lb' THEN 0.45359237 END AS factor, 0.0 AS shift,
    filename, file_row_number + 1 AS line, [1.0, 0.001, 0.45359237] AS meant, [0.0, 0.0, 0.0] AS moved
FROM read_parquet('{raw}/labs/*.parquet', filename = true, file_row_number = true) WHERE test = 'weight';
----
CREATE TEMP VIEW events AS
SELECT who, taken, amount AS number, CASE what WHEN 'bolus' THEN 'insulin_bolus' ELSE 'insulin_basal' END AS name,
    'clinic.insulin.' || what AS source, CASE what WHEN 'bolus' THEN 'dose' ELSE 'rate' END AS kind, NULL::VARCHAR AS label,
    what = 'bolus' AS low_open, CASE what WHEN 'bolus' THEN 100.0 ELSE 35.0 END AS high, filename, file_row_number + 1 AS line
FROM read_parquet('{raw}/insulin/*.parquet', filename = true, file_row_number = true)
UNION ALL BY NAME
SELECT who, taken, grams AS number, 'carbohydrate' AS name, 'clinic.meals' AS source, 'dose' AS kind, lower(meal) AS label,
    false AS low_open, 500.0 AS high, filename, file_row_number + 1 AS line
FROM read_parquet('{raw}/meals/*.parquet', filename = true, file_row_number = true);
----
-- patients whose middle value is implausible in the declared unit, but plausible in another one
CREATE TEMP TABLE contradicted AS
WITH counted AS (
    SELECT source, who, unit, count(value) AS n, count_if(value < low) AS below, count_if(value > high) AS above,
        count_if(number * meant[1] + moved[1] < low) AS below_1, count_if(number * meant[1] + moved[1] > high) AS above_1,
        count_if(number * meant[2] + moved[2] < low) AS below_2, count_if(number * meant[2] + moved[2] > high) AS above_2,
        count_if(number * meant[3] + moved[3] < low) AS below_3, count_if(number * meant[3] + moved[3] > high) AS above_3, max(len(meant)) AS units
    FROM (SELECT *, number * factor + shift AS value FROM numbers) GROUP BY source, who, unit
)
SELECT source, who, unit FROM counted
WHERE n >= 5 AND 2 * greatest(below, above) > n AND (2 * greatest(below_1, above_1) < n OR 2 * greatest(below_2, above_2) < n OR units > 2 AND 2 * greatest(below_3, above_3) < n);
----
CREATE TEMP VIEW judged_numbers AS
SELECT *, CASE WHEN who IS NULL THEN 'missing_patient' WHEN taken IS NULL THEN 'missing_time' WHEN back <> taken THEN 'nonexistent_local_time'
        WHEN utc NOT BETWEEN TIMESTAMP '1900-01-01' AND TIMESTAMP '2100-01-01' THEN 'implausible_time' WHEN number IS NULL THEN 'missing_value'
        WHEN value IS NULL THEN 'unknown_unit' WHEN wrong THEN 'unit_contradicts_values' WHEN value < low OR value > high THEN 'out_of_range' END AS reason
FROM (
    SELECT n.*, patient_id, number * factor + shift AS value, timezone('UTC', instant) AS utc, timezone('Europe/London', instant) AS back,
        timezone('Europe/London', instant + INTERVAL 1 HOUR) = taken AS again, c.who IS NOT NULL AS wrong
    FROM (SELECT *, timezone('Europe/London', taken) AS instant FROM numbers) n LEFT JOIN pseudonyms p ON n.who = p.who
        LEFT JOIN contradicted c ON n.who = c.who AND n.source = c.source AND n.unit IS NOT DISTINCT FROM c.unit
);
----
-- a clock that was set: time steps back within a file by at most 26 hours, and the file has an order; the clinic's files hold none to settle
SELECT CASE WHEN count(*) > 0 THEN error('clocks were set: ' || count(*)) END FROM (
    SELECT who, filename FROM (
        SELECT who, filename, epoch_us(utc) - lag(epoch_us(utc)) OVER (PARTITION BY who, filename ORDER BY line) AS step FROM judged_numbers
        WHERE reason IS NULL AND name = 'glucose'
    ) GROUP BY ALL HAVING count_if(step < 0) BETWEEN 1 AND 0.05 * count(step) AND count_if(step < 0 AND 300000000 - step <= 93600000000) > 0
);
----
CREATE TEMP VIEW timed_events AS
SELECT e.*, patient_id, timezone('UTC', instant) AS utc, timezone('Europe/London', instant) AS back,
    timezone('Europe/London', instant + INTERVAL 1 HOUR) = taken AS again
FROM (SELECT *, timezone('Europe/London', taken) AS instant FROM events) e LEFT JOIN pseudonyms p ON e.who = p.who;
----
-- basal rates that look like U per 5 minutes beside the patient's boluses
CREATE TEMP TABLE small AS
SELECT r.who, r.filename FROM (
    SELECT who, filename, count(*) AS n, 24 * avg(number) AS basal, avg((abs(number / 0.025 - round(number / 0.025)) < 0.01)::INT) AS stepped
    FROM timed_events WHERE kind = 'rate' AND number BETWEEN 0 AND 35 AND back = taken GROUP BY ALL
) r JOIN (
    SELECT who, count(DISTINCT utc::DATE) AS days, sum(number) / count(DISTINCT utc::DATE) AS bolus
    FROM timed_events WHERE name = 'insulin_bolus' AND number > 0 AND number <= 100 AND back = taken GROUP BY ALL
) b ON r.who = b.who WHERE n >= 12 AND days >= 3 AND stepped < 0.5 AND basal / (basal + bolus) < 0.12 AND 12 * basal / (12 * basal + bolus) BETWEEN 0.2 AND 0.8;
----
CREATE TEMP VIEW judged_events AS
SELECT *, CASE WHEN who IS NULL THEN 'missing_patient' WHEN taken IS NULL THEN 'missing_time' WHEN back <> taken THEN 'nonexistent_local_time'
        WHEN utc NOT BETWEEN TIMESTAMP '1900-01-01' AND TIMESTAMP '2100-01-01' THEN 'implausible_time' WHEN number IS NULL THEN 'missing_value'
        WHEN number < 0 THEN 'negative_amount' WHEN small THEN 'unit_contradicts_values' WHEN number > high OR low_open AND number = 0 THEN 'out_of_range' END AS reason
FROM (SELECT e.*, s.who IS NOT NULL AND kind = 'rate' AS small FROM timed_events e LEFT JOIN small s ON e.who = s.who AND e.filename = s.filename);
----
COPY (
    SELECT source, filename[length('{raw}') + 2:] AS file, line, patient_id, reason, 'see rules' AS detail,
        json_object('who', patient_id, 'taken', taken, 'number', number, 'unit', unit)::VARCHAR AS record FROM judged_numbers WHERE reason IS NOT NULL
    UNION ALL
    SELECT source, filename[length('{raw}') + 2:] AS file, line, patient_id, reason, 'see rules',
        json_object('who', patient_id, 'taken', taken, 'number', number, 'label', label)::VARCHAR FROM judged_events WHERE reason IS NOT NULL
    ORDER BY source, file, line
) TO '{out}/quarantine.parquet' (FORMAT parquet);
----
-- one fact, one row: the first file and line wins; another value at the same instant is a conflict
CREATE TEMP TABLE settled AS
SELECT patient_id, name, utc, value, date_diff('minute', utc, back)::INTEGER AS utc_offset_minutes, source, filename[length('{raw}') + 2:] AS file, line, again,
    min(round(value, 6)) OVER facts <> max(round(value, 6)) OVER facts AS differ
FROM judged_numbers WHERE reason IS NULL
WINDOW facts AS (PARTITION BY patient_id, name, utc)
QUALIFY row_number() OVER (PARTITION BY patient_id, name, utc ORDER BY filename, line) = 1;
----
-- patients whose glucose rises hours before or after their meals: shifts in steps of half an hour, rises over an hour
CREATE TEMP TABLE shifted AS
WITH bins AS (
    SELECT patient_id, epoch_us(utc) // 900000000 AS b, avg(value) AS level FROM settled WHERE name = 'glucose' GROUP BY ALL
), rises AS (
    SELECT a.patient_id, a.b, z.level - a.level AS rise FROM bins a JOIN bins z ON a.patient_id = z.patient_id AND z.b = a.b + 4
), eaten AS (
    SELECT DISTINCT patient_id, epoch_us(utc) // 900000000 AS b FROM judged_events WHERE reason IS NULL AND name = 'carbohydrate'
), tried AS (
    SELECT e.patient_id, s.shift, count(*) AS n, avg(rise) AS mean, stddev_pop(rise) / sqrt(count(*)) AS error
    FROM eaten e, range(-56, 57, 2) s(shift), rises r WHERE r.patient_id = e.patient_id AND r.b = e.b + s.shift GROUP BY ALL HAVING count(*) >= 20
)
SELECT patient_id FROM (
    SELECT patient_id, arg_max(shift, mean) AS best, max(mean) AS top, arg_max(error, mean) AS error, max(mean) FILTER (abs(shift) <= 4) AS near FROM tried GROUP BY ALL
) WHERE abs(best) >= 8 AND top - near > greatest(4 * error, top / 2);
----
COPY (
    WITH n AS (
        SELECT *, epoch_us(utc) AS us, (epoch_us(utc) - lag(epoch_us(utc)) OVER w) / 6e7 AS since, (lead(epoch_us(utc)) OVER w - epoch_us(utc)) / 6e7 AS until_,
            value - lag(value) OVER w AS rise, value - lead(value) OVER w AS drop_ FROM settled WHERE name = 'glucose' WINDOW w AS (PARTITION BY patient_id ORDER BY utc)
    ), j AS (
        SELECT *, coalesce(since <= 30, false) AS joined, since IS NULL OR since >= 120 AS opens,
            CASE WHEN since <= 30 AND until_ <= 30 THEN greatest(least(value - rise, value), least(greatest(value - rise, value), value - drop_)) ELSE value END AS smooth FROM n
    ), k AS (
        SELECT *, NOT joined OR abs(rise) > 1e-6 AS fresh, smooth - lag(smooth) OVER w AS smooth_rise, smooth - lead(smooth) OVER w AS smooth_drop,
            CASE WHEN joined AND until_ <= 30 AND rise > 20 + 4 * since AND drop_ > 20 + 4 * until_ THEN 1
                 WHEN joined AND until_ <= 30 AND rise < -20 - 4 * since AND drop_ < -20 - 4 * until_ THEN -1 ELSE 0 END AS spike
        FROM j WINDOW w AS (PARTITION BY patient_id ORDER BY us)
    ), r AS (
        SELECT *, last_value(CASE WHEN fresh THEN us END IGNORE NULLS) OVER w AS run, last_value(CASE WHEN opens THEN us END IGNORE NULLS) OVER w AS session,
            lag(spike) OVER w AS spike_before, lead(spike) OVER w AS spike_after, CASE WHEN lag(joined) OVER w THEN -lag(smooth_rise) OVER w END AS rose,
            CASE WHEN joined THEN smooth_rise / greatest(since, 5) END AS steep
        FROM k WINDOW w AS (PARTITION BY patient_id ORDER BY us)
    ), e AS (
        SELECT *, CASE WHEN us - run >= 3600000000 THEN run END AS lasting, spike = 0 AND coalesce(spike_before = 0, true) AS calm,
            smooth - smooth_rise + greatest(coalesce(rose, 0), 0) AS level FROM r
    ), f AS (
        SELECT *, coalesce(calm AND steep <= -4, false) AS falls, coalesce(calm AND steep >= 4, false) AS rises FROM e
    ), b AS (
        SELECT *, falls AND NOT coalesce(lag(falls) OVER (PARTITION BY patient_id ORDER BY us), false) AS begins FROM f
    ), d AS (
        SELECT *, last_value(CASE WHEN begins THEN {{'at': us, 'level': level}} END IGNORE NULLS) OVER (PARTITION BY patient_id ORDER BY us) AS fall FROM b
    ), l AS (
        SELECT *, CASE WHEN rises AND us - fall.at <= 7200000000 THEN {{'at': fall.at, 'back': -least(fall.level, smooth + greatest(coalesce(-smooth_drop, 0), 0))}} END AS landing FROM d
    ), x AS (
        SELECT *, coalesce(lasting, max(lasting) OVER (PARTITION BY patient_id ORDER BY us RANGE BETWEEN 1 FOLLOWING AND 3600000001 FOLLOWING)) AS lasts,
            min(landing) OVER (PARTITION BY patient_id ORDER BY us RANGE BETWEEN 1 FOLLOWING AND 7200000001 FOLLOWING) AS dip,
            (us / 3.6e9 + utc_offset_minutes / 60.0) % 24 AS hour, coalesce(spike_before = -spike OR spike_after = -spike, false) AS zigzag,
            coalesce(value NOT BETWEEN 40.5 AND 399.5, false) AS limit_ FROM l
    ), flagged AS (
        SELECT x.* EXCLUDE (patient_id), x.patient_id, list_filter([CASE WHEN again THEN 'ambiguous_local_time' END, CASE WHEN shifted.patient_id IS NOT NULL THEN 'clock_off' END,
            CASE WHEN (hour >= 22 OR hour < 8) AND dip.at <= us AND -dip.back - value >= 20 THEN 'compression_low' END, CASE WHEN differ THEN 'conflict' END,
            CASE WHEN NOT fresh AND lasts = run AND NOT limit_ THEN 'flat_line' END, CASE WHEN since > 30 THEN 'gap' END,
            CASE WHEN spike <> 0 AND NOT zigzag THEN 'jump' END, CASE WHEN spike <> 0 AND zigzag THEN 'overlap' END, CASE WHEN limit_ THEN 'saturated' END,
            CASE WHEN us - session < 43200000000 THEN 'warm_up' END], lambda x: x IS NOT NULL) AS quality
        FROM x LEFT JOIN shifted ON x.patient_id = shifted.patient_id
    )
    SELECT hash(patient_id) % {buckets} AS bucket, patient_id, name AS signal, utc AS time, value, utc_offset_minutes, source, file, line, utc AS available_at, quality FROM (
        SELECT patient_id, name, utc, value, utc_offset_minutes, source, file, line, quality FROM flagged
        UNION ALL SELECT patient_id, name, utc, value, utc_offset_minutes, source, file, line,
            list_filter([CASE WHEN again THEN 'ambiguous_local_time' END, CASE WHEN differ THEN 'conflict' END], lambda x: x IS NOT NULL) FROM settled WHERE name <> 'glucose'
    ) ORDER BY bucket, patient_id, signal, time
) TO '{out}/observations' (FORMAT parquet, PARTITION_BY (bucket), OVERWRITE);
----
-- of rates the last line wins; foods of one instant add up unless they are equal
COPY (
    SELECT hash(patient_id) % {buckets} AS bucket, patient_id, name AS agent, kind, utc AS start, NULL::TIMESTAMP AS "end", number AS amount, label,
        date_diff('minute', utc, back)::INTEGER AS utc_offset_minutes, source, filename[length('{raw}') + 2:] AS file, line, utc AS available_at,
        list_filter([CASE WHEN again THEN 'ambiguous_local_time' END, CASE WHEN differ AND name = 'carbohydrate' THEN 'same_instant' WHEN differ THEN 'conflict' END],
            lambda x: x IS NOT NULL) AS quality
    FROM (
        SELECT *, min(round(number, 6)) OVER facts <> max(round(number, 6)) OVER facts AS differ FROM judged_events WHERE reason IS NULL
        WINDOW facts AS (PARTITION BY patient_id, name, kind, utc)
        QUALIFY row_number() OVER (PARTITION BY patient_id, name, kind, utc, CASE WHEN name = 'carbohydrate' THEN round(number, 6) END,
            CASE WHEN name = 'carbohydrate' THEN label END ORDER BY filename, CASE WHEN kind = 'rate' THEN -line ELSE line END) = 1
    ) ORDER BY bucket, patient_id, agent, start, source, file, line
) TO '{out}/exposures' (FORMAT parquet, PARTITION_BY (bucket), OVERWRITE);
----
COPY (
    SELECT patient_id, NULL::VARCHAR AS sex, NULL::DATE AS birth_date, list(DISTINCT source ORDER BY source) AS sources
    FROM (SELECT DISTINCT who, source FROM numbers UNION ALL SELECT DISTINCT who, source FROM events) s JOIN pseudonyms p ON s.who = p.who GROUP BY patient_id
) TO '{out}/patients.parquet' (FORMAT parquet);
----
COPY (
    SELECT source, rows_read, accepted, coalesce(quarantined, 0) AS quarantined, rows_read - accepted - coalesce(quarantined, 0) AS duplicates FROM (
        SELECT source, count(*) AS rows_read FROM (SELECT source FROM numbers UNION ALL SELECT source FROM events) GROUP BY source
    ) LEFT JOIN (
        SELECT source, count(*) AS accepted FROM (SELECT source FROM '{out}/observations/*/*.parquet' UNION ALL SELECT source FROM '{out}/exposures/*/*.parquet') GROUP BY source
    ) USING (source) LEFT JOIN (SELECT source, count(*) AS quarantined FROM '{out}/quarantine.parquet' GROUP BY source) USING (source)
) TO '{out}/ingest_counts.parquet' (FORMAT parquet);
----
COPY (
    WITH hours AS (
        SELECT source, signal, patient_id, epoch_us(time) // 3600000000 AS hour, count(*) AS readings, count_if(len(quality) > 0) AS noticed,
            count_if(list_has_any(quality, ['flat_line', 'jump', 'compression_low', 'overlap', 'clock_off', 'drift'])) AS left_out
        FROM '{out}/observations/*/*.parquet' GROUP BY ALL
    ), people AS (
        SELECT source, signal, patient_id, sum(readings) AS readings, sum(noticed) AS noticed, sum(left_out) AS left_out, count(*) AS hours,
            max(hour) - min(hour) + 1 AS span, median(readings) AS hourly FROM hours GROUP BY ALL
    ), flags AS (
        SELECT source, signal, list({{'flag': flag, 'n': n}} ORDER BY flag) AS flags
        FROM (
            SELECT source, signal, flag, count(*) AS n FROM (SELECT source, signal, unnest(quality) AS flag FROM '{out}/observations/*/*.parquet') GROUP BY ALL
        ) GROUP BY ALL
    )
    SELECT source, signal, count(*) AS patients, sum(readings) AS readings, sum(noticed) AS flagged, sum(left_out) AS left_out, any_value(flags) AS flags,
        median(60 / hourly) AS spacing_minutes, sum(hours) / sum(span) AS wear_fraction
    FROM people LEFT JOIN flags USING (source, signal) GROUP BY source, signal
) TO '{out}/sensor_quality.parquet' (FORMAT parquet);
----
-- fuse: blocks of 14 local days from Monday 1970-01-05; the clock of an episode is the offset of its first record
CREATE TEMP TABLE episodes AS
WITH firsts AS (
    SELECT patient_id, epoch_us(time) AS t, utc_offset_minutes::BIGINT AS offset_, true AS reading FROM '{out}/observations/*/*.parquet'
    WHERE signal = 'glucose' AND NOT list_has_any(quality, ['flat_line', 'jump', 'compression_low', 'overlap', 'clock_off', 'drift'])
    UNION ALL SELECT patient_id, epoch_us(start), utc_offset_minutes::BIGINT, false FROM '{out}/exposures/*/*.parquet'
), blocks AS (
    SELECT patient_id, (t + offset_ * 60000000 - 345600000000) // 1209600000000 AS block, arg_min(offset_, t) AS offset_, bool_or(reading) AS has_reading
    FROM firsts GROUP BY ALL
)
SELECT patient_id, block, offset_, 345600000000 + block * 1209600000000 - offset_ * 60000000 AS start FROM blocks WHERE has_reading;
----
CREATE TEMP TABLE readings AS
WITH slots AS (
    SELECT o.patient_id, e.block, ((epoch_us(time) - e.start + 150000000) // 300000000)::INTEGER AS slot, avg(value)::FLOAT AS value
    FROM '{out}/observations/*/*.parquet' o JOIN episodes e ON o.patient_id = e.patient_id
        AND e.block = (epoch_us(time) + utc_offset_minutes::BIGINT * 60000000 - 345600000000) // 1209600000000
    WHERE signal = 'glucose' AND NOT list_has_any(quality, ['flat_line', 'jump', 'compression_low', 'overlap', 'clock_off', 'drift']) GROUP BY ALL
), grids AS (SELECT patient_id, block, unnest(range(4032))::INTEGER AS slot FROM episodes)
SELECT g.patient_id, g.block, list(coalesce(value, 'nan'::FLOAT) ORDER BY g.slot) AS values, count(value) AS filled
FROM grids g LEFT JOIN slots s ON g.patient_id = s.patient_id AND g.block = s.block AND g.slot = s.slot GROUP BY g.patient_id, g.block;
----
CREATE TEMP TABLE spans AS
SELECT patient_id, agent, kind, epoch_us(start) AS begin, coalesce(label, '') AS label,
    CASE WHEN kind = 'rate' THEN coalesce(lead(epoch_us(start)) OVER (PARTITION BY patient_id, agent, kind ORDER BY start, amount), epoch_us(start) + 86400000000)
         ELSE epoch_us(start) END AS until,
    CASE WHEN kind = 'rate' THEN amount * (coalesce(lead(epoch_us(start)) OVER (PARTITION BY patient_id, agent, kind ORDER BY start, amount), epoch_us(start) + 86400000000)
         - epoch_us(start)) / 3600000000.0 ELSE amount END AS amount
FROM '{out}/exposures/*/*.parquet';
----
CREATE TEMP TABLE inputs AS
WITH clipped AS (
    SELECT e.patient_id, e.block, agent, greatest(begin, start) AS a, least(until, start + 1209600000000) AS z,
        CASE WHEN until = begin THEN amount ELSE amount * (least(until, start + 1209600000000) - greatest(begin, start)) / (until - begin) END AS amount, label, start
    FROM spans s JOIN episodes e ON s.patient_id = e.patient_id AND begin < start + 1209600000000 AND (until > start OR begin = until AND begin >= start)
), listed AS (
    SELECT patient_id, block, agent, list(((a - start) / 60000000.0)::FLOAT ORDER BY a, amount) AS minutes, list(amount::FLOAT ORDER BY a, amount) AS amounts,
        list(((z - a) / 60000000.0)::FLOAT ORDER BY a, amount) AS durations, list(label ORDER BY a, amount) AS labels
    FROM clipped GROUP BY ALL
)
SELECT patient_id, block, list({{'input': agent, 'minutes': minutes, 'amounts': amounts, 'durations': durations, 'labels': labels}} ORDER BY agent) AS inputs
FROM listed GROUP BY ALL;
----
COPY (
    SELECT e.patient_id, 'glucose_insulin' AS model, strftime(DATE '1970-01-05' + (e.block * 14)::INTEGER, '%Y-%m-%d') AS episode, make_timestamp(e.start) AS start,
        20160 AS minutes, 5 AS step_minutes, offset_ AS utc_offset_minutes, [{{'signal': 'glucose', 'minutes': NULL::FLOAT[], 'values': values}}] AS signals, inputs,
        [{{'name': 'body_weight', 'value': coalesce(w.value, 70.0), 'assumed': w.value IS NULL}}] AS covariates, filled / 4032.0 AS wear_fraction,
        CASE WHEN filled < 288 THEN 'insufficient_data' ELSE 'ready' END AS status, hash(values, inputs) AS content_hash
    FROM episodes e JOIN readings r USING (patient_id, block) LEFT JOIN inputs i USING (patient_id, block)
        ASOF LEFT JOIN (SELECT patient_id, epoch_us(time) AS known, value FROM '{out}/observations/*/*.parquet' WHERE signal = 'body_weight') w
        ON e.patient_id = w.patient_id AND e.start >= w.known
) TO '{out}/timelines.parquet' (FORMAT parquet);
